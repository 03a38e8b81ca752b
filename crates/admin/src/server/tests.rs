use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::{Client, PartState, ServiceState};

fn doc(ready: bool) -> StateDoc {
    let mut doc = StateDoc::new("w1", "0.1.0", 42, (UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(5)));
    doc.parts.insert("dns".to_owned(), PartState { enabled: true, ready, ..PartState::default() });
    doc.services =
        vec![ServiceState { namespace: "default".into(), name: "web".into(), ..ServiceState::default() }];
    doc
}

async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(15), future).await.expect("nothing happened within 15 s")
}

/// Serves a document; the sender stops the server.
fn start(path: &Path, ready: bool) -> (oneshot::Sender<()>, tokio::task::JoinHandle<Result<(), Error>>) {
    let server = AdminServer::bind(path).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let source: Arc<dyn StateSource> = Arc::new(move || doc(ready));
    let shutdown = async move {
        let _signal = stopped.await;
    };
    (stop, tokio::spawn(server.serve(source, shutdown)))
}

#[tokio::test]
async fn the_state_comes_over_the_socket_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd/netd.sock");
    let (stop, task) = start(&path, true);
    let client = Client::connect(&path).await.unwrap();
    assert_eq!(client.state().await.unwrap(), doc(true));
    assert_eq!(client.services().await.unwrap(), doc(true).services);
    assert_eq!(client.version().await.unwrap(), "0.1.0");
    assert!(client.healthy().await.unwrap());
    stop.send(()).unwrap();
    soon(task).await.unwrap().unwrap();
    assert!(!path.exists(), "the socket goes with the daemon");
}

#[tokio::test]
async fn a_part_that_is_not_ready_makes_healthz_fail() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.sock");
    let (_stop, _task) = start(&path, false);
    let client = Client::connect(&path).await.unwrap();
    assert!(!client.healthy().await.unwrap());
}

#[tokio::test]
async fn socket_and_directory_are_for_the_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/netd/netd.sock");
    let server = AdminServer::bind(&path).unwrap();
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(&path.with_extension("sock.lock")), 0o600);
    drop(server);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "nothing is left");
}

#[tokio::test]
async fn a_live_socket_is_not_taken_and_its_process_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.sock");
    let _first = AdminServer::bind(&path).unwrap();
    let error = AdminServer::bind(&path).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with(&format!("another netd is running (pid {})", std::process::id())), "{text}");
    assert!(path.exists());
}

#[test]
fn of_many_that_start_at_once_one_gets_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.sock");
    let bind = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let bound = AdminServer::bind(&path);
        match bound {
            Ok(server) => Ok((server, runtime)),
            Err(error) => Err(error),
        }
    };
    for _ in 0..20 {
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(bind)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        let errors = results.iter().filter_map(|result| result.as_ref().err());
        assert!(errors.into_iter().all(|error| matches!(error, Error::Running { .. })));
    }
}

#[tokio::test]
async fn a_dead_processs_socket_is_replaced_and_other_files_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "std leaves the file behind, as a killed daemon does");
    let unreachable = Client::connect(&path).await.unwrap_err();
    assert!(unreachable.is_unreachable() && unreachable.to_string().contains("netd run"), "{unreachable}");
    let _server = AdminServer::bind(&path).unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(AdminServer::bind(&file), Err(Error::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn a_missing_daemon_is_its_own_error() {
    let error = Client::connect(Path::new("/nonexistent/netd.sock")).await.unwrap_err();
    assert!(error.is_unreachable());
    assert!(error.to_string().starts_with("no netd answers on /nonexistent/netd.sock: start it"), "{error}");
}

#[tokio::test]
async fn an_open_connection_does_not_hold_up_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.sock");
    let (stop, task) = start(&path, true);
    let _idle = UnixStream::connect(&path).await.unwrap();
    Client::connect(&path).await.unwrap().state().await.unwrap();
    stop.send(()).unwrap();
    soon(task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_is_no_netd_is_an_error_with_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let _connect = listener.accept().await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _length = stream.read(&mut request).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
    });
    let client = Client::connect(&path).await.unwrap();
    let error = soon(client.state()).await.unwrap_err();
    assert!(matches!(error, Error::Document { request: "/v1/state", .. }), "{error}");
    soon(serving).await.unwrap();
}
