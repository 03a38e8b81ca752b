//! The directory of the ledger: full, read-only, missing, failing, damaged, of an earlier boot.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::scope;

use netd_ipam::Ledger;
use netd_kernel::exec::{Output, Spawn};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use super::chance::{Chance, seed};
use super::harness::{Host, LIMIT, Space, environment, error_of, text};
use super::node::{addresses_of, assert_nothing, dual};
use super::tracer::{Fault, run};

/// A small file system over the ledger's directory, gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn over(path: &Path, size: &str) -> Self {
        std::fs::create_dir_all(path).unwrap();
        mount(Some("nd-small"), path, Some("tmpfs"), MsFlags::empty(), Some(size)).unwrap();
        Self(path.to_owned())
    }

    fn make_read_only(&self, on: bool) {
        let flags = if on { MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY } else { MsFlags::MS_REMOUNT };
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).unwrap();
    }

    /// Writes until nothing goes in any more.
    fn fill(&self) -> PathBuf {
        use std::io::Write;
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        while file.write(&[0; 512]).is_ok_and(|written| written > 0) {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn directory(host: &Host) -> PathBuf {
    host.data.path().join("ipam")
}

fn ledger(host: &Host) -> PathBuf {
    Ledger::path_of(&directory(host), "pods")
}

/// An ADD that fails because of the ledger, names its directory and leaves nothing.
fn refused(host: &Host, pod: &Space, what: &str) {
    let error = error_of(&host.verb("ADD", "refused", pod.path(), &host.config));
    assert_eq!(error["code"], 102, "{what}: {error}");
    assert!(
        error.to_string().contains(directory(host).to_str().unwrap()),
        "{what}: no file is named: {error}"
    );
    assert!(pod.links().is_empty(), "{what}");
    let links: Vec<String> = host.space.links().into_iter().filter(|name| name != "netd0").collect();
    assert_eq!(links, Vec::<String>::new(), "{what}");
}

#[test]
fn c06_a_full_disk() {
    let (host, pod) = (dual(), Space::new("pod"));
    // Whatever a ledger needs, it does not find it here.
    let tiny = SmallDisk::over(&directory(&host), "size=64k");
    tiny.fill();
    refused(&host, &pod, "64 KiB, and full");
    host.del("refused", pod.path());
    drop(tiny);
    let disk = SmallDisk::over(&directory(&host), "size=512k");
    let filler = disk.fill();
    refused(&host, &pod, "full from the start");
    std::fs::remove_file(&filler).unwrap();
    host.add("c0", &pod);
    host.del("c0", pod.path());
    assert_nothing(&host, "after the first pod");
    // Full while pods come and go: each call works or refuses, and what it says is so.
    disk.fill();
    let (mut worked, mut refusals) = (0, 0);
    for turn in 0..60 {
        let id = format!("c{turn}");
        let output = host.verb("ADD", &id, pod.path(), &host.config);
        if output.status == 0 {
            worked += 1;
        } else {
            refusals += 1;
            assert_eq!(error_of(&output)["code"], 102, "{}", text(&output));
            assert!(pod.links().is_empty());
        }
        let mut output = host.verb("DEL", &id, pod.path(), &host.config);
        if output.status != 0 {
            assert_eq!(error_of(&output)["code"], 104, "{}", text(&output));
            std::fs::remove_file(&filler).unwrap();
            output = host.verb("DEL", &id, pod.path(), &host.config);
            disk.fill();
        }
        assert_eq!(output.status, 0, "{}", text(&output));
        assert_nothing(&host, &id);
    }
    std::fs::remove_file(&filler).unwrap();
    host.add("after", &pod);
    host.del("after", pod.path());
    assert_nothing(&host, "after the disk has room again");
    println!(
        "c06: full disk (64 KiB, 512 KiB): of 60 ADDs {worked} worked, {refusals} refused, 0 left; with room again all is well"
    );
}

#[test]
fn c06_a_read_only_disk() {
    let (host, pod, other) = (dual(), Space::new("pod"), Space::new("pod"));
    let disk = SmallDisk::over(&directory(&host), "size=512k");
    let result = host.add("c1", &pod);
    disk.make_read_only(true);
    let error = error_of(&host.verb("ADD", "c2", other.path(), &host.config));
    assert_eq!(error["code"], 102, "{error}");
    assert!(other.links().is_empty());
    assert_eq!(host.check("c1", &pod, &result).status, 0, "what lives goes on");
    // The lease cannot be ended: the runtime is told so, and calls again.
    let error = error_of(&host.verb("DEL", "c1", pod.path(), &host.config));
    assert_eq!(error["code"], 104, "{error}");
    disk.make_read_only(false);
    host.del("c1", pod.path());
    assert_nothing(&host, "writable again");
    host.add("c2", &other);
    println!(
        "c06: read-only disk: ADD and DEL refused with 102 and 104, 0 left after the DEL that could write"
    );
}

#[test]
fn c06_a_missing_or_wrong_directory() {
    use std::os::unix::fs::PermissionsExt;
    let (host, pod) = (dual(), Space::new("pod"));
    let path = directory(&host);
    std::fs::write(&path, "a file").unwrap();
    refused(&host, &pod, "a file in the directory's place");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir_all(ledger(&host)).unwrap();
    refused(&host, &pod, "a directory in the ledger's place");
    std::fs::remove_dir(ledger(&host)).unwrap();
    for mode in [0o000, 0o777] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        host.add("c1", &pod);
        let found = std::fs::metadata(ledger(&host)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, 0o600, "pod names are nobody else's business");
        host.del("c1", pod.path());
    }
    // Away under a running pod: the links know, and nobody gets its address.
    let (live, other) = (Space::new("pod"), Space::new("pod"));
    let first = host.add("live", &live);
    std::fs::remove_dir_all(&path).unwrap();
    let second = host.add("other", &other);
    assert!(addresses_of(&first).is_disjoint(&addresses_of(&second)));
    host.del("live", "");
    host.del("other", "");
    assert_nothing(&host, "after the directory was missing");
    println!(
        "c06: a file for the directory, a directory for the ledger, modes 000 and 777, missing: 5 of 5 refused or made again"
    );
}

#[test]
fn c06_every_write_fails_once() {
    let (host, pod) = (dual(), Space::new("pod"));
    let (mut refusals, mut worked) = (0, 0);
    for verb in ["ADD", "DEL"] {
        for at in 1.. {
            assert!(at < 200, "it never ends");
            if verb == "DEL" {
                host.add("c1", &pod);
            }
            let spawn = host.spawn(&environment(verb, "c1", pod.path()));
            let errno = [Errno::EIO, Errno::ENOSPC][at % 2];
            let ended = run(spawn, host.config.to_string().as_bytes(), Fault::FailFile(at, errno));
            let when = format!("{verb}, write {at} fails: {:?}", ended.hit);
            match ended.status {
                Some(0) => worked += 1,
                status => {
                    let output = Output {
                        status: status.expect("it ends by itself"),
                        stdout: ended.stdout,
                        ..Output::default()
                    };
                    error_of(&output);
                    refusals += 1;
                }
            }
            host.del("c1", pod.path());
            assert_nothing(&host, &when);
            assert!(pod.links().is_empty(), "{when}");
            if ended.hit.is_none() {
                break;
            }
        }
    }
    println!(
        "c06: every write to a file failed once (EIO, ENOSPC): {worked} calls worked all the same, {refusals} refused, 0 left"
    );
}

/// A node with three pods and the history of others.
struct Damaged {
    host: Host,
    pods: Vec<Space>,
    live: BTreeSet<IpAddr>,
    whole: Vec<u8>,
}

impl Damaged {
    fn new() -> Self {
        let host = Host::new();
        let pods: Vec<Space> = (0..4).map(|_| Space::new("pod")).collect();
        host.add("gone", &pods[3]);
        let mut live = BTreeSet::new();
        for (n, pod) in pods.iter().take(3).enumerate() {
            live.extend(addresses_of(&host.add(&format!("live{n}"), pod)));
        }
        host.del("gone", pods[3].path());
        let whole = std::fs::read(ledger(&host)).unwrap();
        Self { host, pods, live, whole }
    }

    /// Puts a damaged ledger in place; a new pod never gets a live address. Returns whether the damage was told.
    fn meets(&self, bytes: &[u8], what: &str) -> bool {
        let path = ledger(&self.host);
        std::fs::write(&path, bytes).unwrap();
        let output = self.host.verb("ADD", "new", self.pods[3].path(), &self.host.config);
        assert_eq!(output.status, 0, "{what}: {}{}", text(&output), output.complaint());
        let told = addresses_of(&serde_json::from_slice(&output.stdout).unwrap());
        assert!(told.is_disjoint(&self.live), "{what}: {told:?} lives already");
        let kept = self.kept();
        assert_eq!(kept.len(), usize::from(!output.stderr.is_empty()), "{what}: {}", output.complaint());
        if let Some(kept) = kept.first() {
            let found = std::fs::read(kept).unwrap();
            assert_eq!(found.len(), bytes.len(), "{what}: the damaged file is kept as it was");
            // What the journal has of the last change was mended before other damage was found.
            let mended = |(place, byte): (usize, &u8)| self.whole.get(place) == Some(byte);
            let other = found.iter().enumerate().filter(|(place, byte)| bytes.get(*place) != Some(byte));
            assert!({ other }.all(mended), "{what}: the damaged file is kept as it was");
            std::fs::remove_file(kept).unwrap();
        }
        // What the ADD did not need to read may be damaged still: then the next one that reads it puts the file aside.
        let known = Ledger::read(&path)
            .map(|all| all.iter().flat_map(|lease| lease.addresses.clone()).collect::<BTreeSet<_>>());
        if let Ok(leases) = &known {
            assert!(leases.is_superset(&self.live), "{what}: a live pod has lost its lease");
        }
        self.host.del("new", self.pods[3].path());
        self.kept().iter().for_each(|kept| std::fs::remove_file(kept).unwrap());
        !output.stderr.is_empty() || known.is_err()
    }

    fn kept(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory(&self.host)).unwrap();
        entries.map(|e| e.unwrap().path()).filter(|p| p.to_string_lossy().contains(".corrupt-")).collect()
    }
}

/// Puts every one of `total` damages on one of two nodes; returns how many were told.
fn damage_all(total: usize, damage: impl Fn(&Damaged, usize) -> (Vec<u8>, String) + Sync) -> usize {
    let (next, told) = (AtomicUsize::new(0), AtomicUsize::new(0));
    scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                let node = Damaged::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= total {
                        break;
                    }
                    let (bytes, what) = damage(&node, n);
                    told.fetch_add(usize::from(node.meets(&bytes, &what)), Ordering::Relaxed);
                }
                std::fs::write(ledger(&node.host), &node.whole).unwrap();
                for id in ["live0", "live1", "live2", "new"] {
                    node.host.del(id, "");
                }
                assert_nothing(&node.host, "after all damages");
            });
        }
    });
    told.into_inner()
}

#[test]
fn c07_a_ledger_cut_off_at_every_offset() {
    const OFFSETS: usize = 160;
    let whole = Damaged::new().whole.len();
    let step = whole.div_ceil(OFFSETS).max(1);
    let total = whole.div_ceil(step);
    let told = damage_all(total, |node, n| {
        let at = (n * step).min(node.whole.len());
        (node.whole[..at].to_vec(), format!("cut off at byte {at} of {}", node.whole.len()))
    });
    println!(
        "c07: ledger of {whole} bytes cut off at {total} offsets: {told} noticed, 0 live addresses handed out, 0 leases lost"
    );
}

#[test]
fn c07_a_ledger_with_flipped_bits_or_another_file() {
    const FLIPS: usize = 96;
    let seed = seed();
    println!("NETD_TEST_SEED={seed}");
    let chance = Chance::new(seed);
    let told = damage_all(FLIPS + 4, |node, n| {
        let mut bytes = node.whole.clone();
        match n.checked_sub(FLIPS) {
            Some(0) => (vec![0; node.whole.len()], "zeros".to_owned()),
            Some(1) => (Vec::new(), "an empty file".to_owned()),
            Some(2) => (b"{\"10.0.0.1\": \"somebody else's file\"}\n".to_vec(), "another file".to_owned()),
            Some(_) => {
                bytes.extend_from_slice(&node.whole);
                (bytes, "twice the same file".to_owned())
            }
            None => {
                let mut flips = Vec::new();
                for _ in 0..=chance.below(3) {
                    // Most of a ledger is room for more.
                    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
                    let at = used[usize::try_from(chance.below(used.len() as u64)).unwrap()];
                    let bit = 1 << chance.below(8);
                    bytes[at] ^= bit;
                    flips.push((at, bit));
                }
                (bytes, format!("flipped {flips:?}, NETD_TEST_SEED={seed}"))
            }
        }
    });
    println!(
        "c07: {} damaged ledgers: {told} noticed, 0 live addresses handed out, 0 leases lost",
        FLIPS + 4
    );
}

/// Calls the plugin on a machine that says it has started with this id.
fn in_boot(host: &Host, boot: &str, verb: &str, whose: (&str, &str), config: &Value) -> Output {
    let file = host.data.path().join(format!("boot-{boot}"));
    std::fs::write(&file, format!("00000000-0000-4000-8000-00000000000{boot}\n")).unwrap();
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$1\"";
    let plugin = env!("CARGO_BIN_EXE_netd-cni");
    let args = ["--mount", "--", "/bin/sh", "-c", script, file.to_str().unwrap(), plugin];
    let mut spawn: Spawn = host.spawn(&environment(verb, whose.0, whose.1));
    spawn.program = "/usr/bin/unshare".into();
    spawn.args = args.map(Into::into).to_vec();
    spawn.output(config.to_string().as_bytes(), LIMIT).unwrap()
}

#[test]
fn c08_after_a_reboot_the_leases_of_before_are_void() {
    const PODS: usize = 5;
    let mut before = Host::with_ranges(json!([[{ "subnet": "172.16.1.0/29" }]]));
    let pods: Vec<Space> = (0..PODS).map(|_| Space::new("pod")).collect();
    let told = |output: Output| {
        assert_eq!(output.status, 0, "{}{}", text(&output), output.complaint());
        addresses_of(&serde_json::from_slice(&output.stdout).unwrap())
    };
    let mut first = BTreeSet::new();
    for (n, pod) in pods.iter().enumerate() {
        first.extend(told(in_boot(&before, "1", "ADD", (&format!("old{n}"), pod.path()), &before.config)));
    }
    assert_eq!(first.len(), PODS, "the pool is full");
    let full = in_boot(&before, "1", "ADD", ("one-more", pods[0].path()), &before.config);
    assert_ne!(full.status, 0);
    // The machine starts again: the kernel has nothing, the disk has all.
    before.space = Space::new("host");
    let node = before;
    for n in 0..2 {
        let output = in_boot(&node, "2", "DEL", (&format!("old{n}"), ""), &node.config);
        assert_eq!((output.status, text(&output)), (0, String::new()), "a late DEL of a pod of before");
    }
    let new: Vec<Space> = (0..PODS).map(|_| Space::new("pod")).collect();
    let mut second = BTreeSet::new();
    for (n, pod) in new.iter().enumerate() {
        second.extend(told(in_boot(&node, "2", "ADD", (&format!("new{n}"), pod.path()), &node.config)));
    }
    assert_eq!(second, first, "every address is free again");
    let late = in_boot(&node, "2", "DEL", ("old4", ""), &node.config);
    assert_eq!(late.status, 0, "{}", text(&late));
    let mut config = node.config.clone();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "new0", "ifname": "eth0" }]);
    let gc = in_boot(&node, "2", "GC", ("", ""), &config);
    assert_eq!((gc.status, text(&gc)), (0, String::new()));
    let links = node.space.links().into_iter().filter(|name| name != "netd0").count();
    assert_eq!(links, 1, "GC leaves the valid one");
    println!(
        "c08: {PODS} leases of an earlier boot: 0 live after it, {PODS} of {PODS} addresses handed out again, 0 stale after GC"
    );
}
