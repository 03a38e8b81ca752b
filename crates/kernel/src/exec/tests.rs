use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::Error;
use crate::process::Signal;

const LONG: Duration = Duration::from_secs(20);

fn sh(script: &str, stdin: &[u8], timeout: Duration) -> Result<Output> {
    SystemExec.run(Path::new("/bin/sh"), &["-c", script], stdin, timeout)
}

#[test]
fn output_and_status_come_back() {
    let output = sh("echo out; echo err >&2; exit 3", b"", LONG).unwrap();
    assert_eq!((output.status, output.stdout.as_slice()), (3, b"out\n".as_slice()));
    assert_eq!(output.complaint(), "err");
    assert!(!output.success());
}

#[test]
fn more_than_a_pipe_holds_goes_both_ways() {
    let input = vec![b'x'; 1 << 20];
    let output = sh("cat; head -c 300000 /dev/zero >&2", &input, LONG).unwrap();
    assert_eq!(output.stdout.len(), input.len());
    assert_eq!(output.stderr.len(), 300_000);
}

#[test]
fn unread_input_is_no_error() {
    assert!(sh("exec true", &vec![0; 1 << 20], LONG).unwrap().success());
}

#[test]
fn a_program_that_hangs_is_killed_with_its_children() {
    let error = sh("sleep 1000 & echo $! ; wait", b"", Duration::from_millis(200)).unwrap_err();
    assert!(error.is_timeout(), "{error}");
}

#[test]
fn a_child_left_behind_does_not_hold_up_the_result() {
    let output = sh("sleep 2 & exit 0", b"", LONG).unwrap();
    assert!(output.success());
}

#[test]
fn the_environment_is_ours_alone() {
    let output = sh("env", b"", LONG).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.lines().all(|l| ["PATH=", "LC_ALL=", "PWD=", "SHLVL=", "_=", "OLDPWD="]
            .iter()
            .any(|p| l.starts_with(p))),
        "{text}"
    );
}

#[test]
fn a_signal_shows_in_the_status() {
    assert_eq!(sh("kill -9 $$", b"", LONG).unwrap().status, 128 + 9);
}

#[test]
fn an_absent_program_is_named() {
    let error = SystemExec.run(Path::new("/no/such/program"), &[], b"", LONG).unwrap_err();
    assert!(matches!(error, Error::Exec { .. }) && error.is_not_found(), "{error}");
    assert!(error.to_string().contains("/no/such/program"));
}

#[test]
fn programs_are_found_in_system_directories_only() {
    assert!(find_program("sh").unwrap().is_absolute());
    assert_eq!(find_program("no-such-program-here"), None);
    assert_eq!(find_program("../bin/sh"), None);
}

#[test]
fn a_spawned_child_talks_and_ends() {
    let mut spawn = Spawn::new("/bin/sh", ["-c", "read line; echo got $line; exit 7"]);
    spawn.stdin = Stream::Pipe;
    spawn.stdout = Stream::Pipe;
    let mut child = spawn.start().unwrap();
    child.take_stdin().unwrap().write_all(b"this\n").unwrap();
    let mut text = String::new();
    child.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "got this\n");
    assert_eq!(child.wait_timeout(LONG).unwrap(), Some(7));
    child.kill(Signal::Kill).unwrap();
}

#[test]
fn a_spawned_child_writes_to_a_file_and_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut spawn = Spawn::new("/bin/sh", ["-c", "echo started; exec sleep 1000"]);
    spawn.stdout = Stream::File(log.clone());
    let mut child = spawn.start().unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    let seen = crate::clock::eventually(LONG, || {
        std::fs::read_to_string(&log).ok().filter(|text| text == "started\n")
    });
    assert!(seen.is_some());
    assert_eq!(child.wait_timeout(Duration::from_millis(10)).unwrap(), None);
    assert_eq!(child.stop(LONG).unwrap(), 128 + 15);
}

#[test]
fn an_absent_namespace_is_named() {
    let mut spawn = Spawn::new("/bin/true", [""; 0]);
    spawn.netns = Some("/run/netns/nd-no-such".into());
    let error = spawn.start().unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("nd-no-such"), "{error}");
}

#[test]
fn a_spawned_command_runs_to_its_end_with_its_own_environment() {
    let mut spawn = Spawn::new("/bin/sh", ["-c", "cat; echo $COLOUR; exit 4"]);
    spawn.env.push(("COLOUR".into(), "blue".into()));
    let output = spawn.output(b"in\n", LONG).unwrap();
    assert_eq!((output.status, output.stdout.as_slice()), (4, b"in\nblue\n".as_slice()));
}
