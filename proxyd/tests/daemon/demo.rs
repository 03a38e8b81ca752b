//! `netd demo`, stopped in every way: nothing of it is ever left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use netd_kernel::clock::eventually;
use netd_kernel::exec::{Child, Spawn};
use netd_kernel::mount;
use netd_kernel::process::Signal;

use crate::node::{Ended, NETD, netd};

const PATIENCE: Duration = Duration::from_secs(60);

/// A demo with a name of its own.
struct Demo {
    name: String,
}

impl Demo {
    fn new(test: &str) -> Self {
        Self { name: format!("nd-{}-{test}", std::process::id()) }
    }

    fn directory(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }

    /// A plugin that answers nothing: the demo gets as far as its pods.
    fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        ["demo", "--name", &self.name, "--cni-plugin", "/bin/true"].iter().chain(more).copied().collect()
    }

    fn start(&self) -> Child {
        Spawn::new(NETD, self.args(&["--script"])).start().unwrap()
    }

    fn run(&self, more: &[&str]) -> Ended {
        netd(&self.args(more)).output()
    }

    fn wait_for(&self, file: &str) {
        let path = self.directory().join(file);
        assert!(eventually(PATIENCE, || path.exists().then_some(())).is_some(), "no {}", path.display());
    }

    /// Everything of this demo that is on the machine.
    fn left(&self) -> Vec<String> {
        let cgroup = mount::cgroup2_root().unwrap().join(&self.name);
        let paths = [self.directory(), cgroup].into_iter().filter(|path| path.exists());
        let namespaces = std::fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|e| e.path());
        let namespaces = namespaces
            .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&self.name)));
        let mounts = mount::mounts().unwrap().into_iter().map(|mounted| mounted.target);
        let mounts = mounts.filter(|target| target.starts_with(self.directory()));
        paths.chain(namespaces).chain(mounts).map(|path| path.display().to_string()).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(netd(&["demo", "--name", &self.name, "--cleanup"]).output());
    }
}

#[test]
fn an_interrupted_demo_removes_all_wherever_it_was() {
    let demo = Demo::new("interrupt");
    for (signal, moment) in [
        (Signal::Interrupt, "record"),
        (Signal::Terminate, "w1/netd.yaml"),
        (Signal::Hangup, "w3/run/netd.sock"),
        (Signal::Interrupt, "w3/run/podcidrs.json"),
    ] {
        let mut child = demo.start();
        demo.wait_for(moment);
        child.kill(signal).unwrap();
        // An impatient second one must not stop the removal.
        child.kill(Signal::Interrupt).unwrap();
        let code = child.wait_timeout(PATIENCE).unwrap();
        assert_eq!(code, Some(130), "{signal:?} at {moment}");
        assert_eq!(demo.left(), [""; 0], "{signal:?} at {moment}");
    }
}

#[test]
fn a_killed_demo_is_in_the_way_until_it_is_cleaned_up() {
    let demo = Demo::new("killed");
    let mut child = demo.start();
    demo.wait_for("w2/netd.log");
    child.kill(Signal::Kill).unwrap();
    child.wait_timeout(PATIENCE).unwrap();
    let standing = demo.left();

    let refused = demo.run(&["--script"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (64, ""), "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("--cleanup"), "{}", refused.stderr);
    assert!(standing.iter().all(|path| Path::new(path).exists()), "the refused one removed something");

    let cleaned = demo.run(&["--cleanup"]);
    assert_eq!(cleaned.code, 0, "{}", cleaned.stderr);
    assert_eq!(demo.left(), [""; 0]);
    assert!(demo.run(&["--cleanup"]).stdout.contains("no demo"));
}

#[test]
fn a_demo_that_breaks_says_where_and_leaves_nothing() {
    let demo = Demo::new("breaks");
    let run = demo.run(&["--script"]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let last: serde_json::Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&last["step"], &last["ok"]), (&"summary".into(), &false.into()));
    assert!(last["error"].as_str().unwrap().starts_with("step pods"), "{last}");
    assert!(run.stderr.contains("w1/netd.log"), "the daemons' logs are not shown: {}", run.stderr);
    assert_eq!(demo.left(), [""; 0]);
}
