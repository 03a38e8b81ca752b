//! SIGKILL at any moment.

use std::time::Duration;

use netd_kernel::exec::Stream;
use netd_kernel::process::Signal;

use super::harness::{Host, LIMIT, Space, environment, text};

/// Kills so many ADDs and DELs; the delay grows until a call has surely ended.
const KILLS: u32 = 40;

#[test]
fn whatever_is_killed_a_del_leaves_nothing() {
    let host = Host::new();
    let stdin = host.data.path().join("stdin");
    std::fs::write(&stdin, host.config.to_string()).unwrap();
    let witness = Space::new("pod");
    let result = host.add("witness", &witness);
    let killed = |verb: &str, pod: &Space, delay: Duration| {
        let mut spawn = host.spawn(&environment(verb, "victim", pod.path()));
        spawn.stdin = Stream::File(stdin.clone());
        let mut child = spawn.start().unwrap();
        std::thread::sleep(delay);
        child.kill(Signal::Kill).unwrap();
        child.wait_timeout(LIMIT).unwrap().unwrap()
    };
    let mut died = 0;
    for turn in 0..KILLS {
        let pod = Space::new("pod");
        // An ADD takes a few milliseconds here, so that most of these hit it at work.
        let delay = Duration::from_micros(u64::from(turn % 20) * 300);
        died += u32::from(killed("ADD", &pod, delay) == 137);
        if turn % 2 == 1 {
            died += u32::from(killed("DEL", &pod, delay * 2) == 137);
        }
        host.del("victim", pod.path());
        let left: Vec<String> =
            host.leftovers().into_iter().filter(|what| !what.contains("witness")).collect();
        assert_eq!(
            left.len(),
            2,
            "turn {turn}: more than the witness's link and neighbour is left: {left:?}"
        );
        assert!(pod.links().is_empty());
        host.add("victim", &pod);
        host.del("victim", pod.path());
    }
    assert!(died > 0, "no call was killed at work");
    let check = host.check("witness", &witness, &result);
    assert_eq!(check.status, 0, "{}", text(&check));
}
