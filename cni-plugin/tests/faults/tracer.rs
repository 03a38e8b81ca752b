//! A call of the plugin that dies before its nth system call, or whose nth system call fails: ptrace(2).
//!
//! System calls are counted over all threads, from the moment the plugin reads its standard input: before that it has done
//! nothing.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::time::Duration;

use netd_kernel::Clock;
use netd_kernel::exec::{Spawn, Stream};
use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What is to happen at a system call, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL before the nth call is done.
    Kill(usize),
    /// The nth call is not done and returns this error.
    Fail(usize, Errno),
    /// The nth call that changes a file (write, pwrite64, fsync, ftruncate, rename, …) is not done and returns this error.
    FailFile(usize, Errno),
}

/// How a traced call ended.
#[derive(Debug)]
pub(crate) struct Traced {
    /// The exit status; `None` when a signal ended it.
    pub(crate) status: Option<i32>,
    /// The system call that the fault hit, as `/proc/<pid>/syscall` shows it.
    pub(crate) hit: Option<String>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Runs a call of the plugin under a fault.
pub(crate) fn run(spawn: Spawn, stdin: &[u8], fault: Fault) -> Traced {
    // A thread of its own: it waits for all of its children, and there are to be no others.
    std::thread::scope(|scope| scope.spawn(|| on_thread(spawn, stdin, fault)).join().unwrap())
}

fn on_thread(mut spawn: Spawn, stdin: &[u8], fault: Fault) -> Traced {
    (spawn.stdin, spawn.stdout, spawn.stderr) = (Stream::Pipe, Stream::Pipe, Stream::Pipe);
    let mut child = spawn.start().unwrap();
    let leader = Pid::from_raw(child.pid().try_into().unwrap());
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(leader, options).expect("tracing needs CAP_SYS_PTRACE");
    ptrace::interrupt(leader).unwrap();
    // Shorter than a pipe's buffer, so that this does not wait.
    child.take_stdin().unwrap().write_all(stdin).unwrap();
    let mut tracer = Tracer { fault, started: false, calls: 0, hit: None, inside: HashMap::new() };
    let status = tracer.follow(leader);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.take_stdout().unwrap().read_to_end(&mut stdout).unwrap();
    child.take_stderr().unwrap().read_to_end(&mut stderr).unwrap();
    Traced { status, hit: tracer.hit, stdout, stderr }
}

struct Tracer {
    fault: Fault,
    /// Whether it has begun to read its standard input.
    started: bool,
    calls: usize,
    hit: Option<String>,
    /// Threads within a system call, and the error it is to return instead of what it does.
    inside: HashMap<Pid, Option<Errno>>,
}

impl Tracer {
    fn follow(&mut self, leader: Pid) -> Option<i32> {
        let own = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let start = netd_kernel::SystemClock.now();
        loop {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "a traced call hangs after {} calls",
                self.calls
            );
            match waitpid(None, Some(own)).unwrap() {
                WaitStatus::Exited(pid, status) if pid == leader => return Some(status),
                WaitStatus::Signaled(pid, _, _) if pid == leader => return None,
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {}
                WaitStatus::PtraceSyscall(pid) => {
                    self.at_system_call(leader, pid);
                    go_on(pid, None);
                }
                WaitStatus::Stopped(pid, signal) => go_on(pid, Some(signal)),
                WaitStatus::PtraceEvent(pid, ..) => go_on(pid, None),
                WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
            }
        }
    }

    fn at_system_call(&mut self, leader: Pid, pid: Pid) {
        if let Some(error) = self.inside.remove(&pid) {
            if let Some(error) = error {
                set_result(pid, error);
            }
            return;
        }
        self.inside.insert(pid, None);
        self.started |= reads_input(pid);
        if !self.started {
            return;
        }
        let counts = match self.fault {
            Fault::FailFile(..) => changes_file(pid),
            Fault::Kill(_) | Fault::Fail(..) => true,
        };
        self.calls += usize::from(counts);
        match self.fault {
            Fault::Kill(at) if self.calls == at => {
                self.hit = Some(describe(leader, pid));
                kill(leader, Signal::SIGKILL).unwrap();
            }
            Fault::Fail(at, error) | Fault::FailFile(at, error) if counts && self.calls == at => {
                let hit = describe(leader, pid);
                if may_fail(pid) {
                    skip(pid);
                    self.inside.insert(pid, Some(error));
                }
                self.hit = Some(hit);
            }
            Fault::Kill(_) | Fault::Fail(..) | Fault::FailFile(..) => {}
        }
    }
}

/// Goes on to the next entry to or exit from a system call; one that has died meanwhile does not.
fn go_on(pid: Pid, signal: Option<Signal>) {
    match ptrace::syscall(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("{error}"),
    }
}

fn describe(leader: Pid, pid: Pid) -> String {
    std::fs::read_to_string(format!("/proc/{leader}/task/{pid}/syscall"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The number of the system call that the thread is about to do.
#[cfg(target_arch = "x86_64")]
fn number(pid: Pid) -> i64 {
    ptrace::getregs(pid).map_or(-1, |registers| registers.orig_rax.cast_signed())
}

/// Calls whose failure no program can meet, or that cannot fail so: threads, memory, sleep, its own end.
#[cfg(target_arch = "x86_64")]
fn may_fail(pid: Pid) -> bool {
    use nix::libc::*;
    let fixed = [
        SYS_exit,
        SYS_exit_group,
        SYS_mmap,
        SYS_munmap,
        SYS_mprotect,
        SYS_brk,
        SYS_futex,
        SYS_rt_sigprocmask,
        SYS_rt_sigaction,
        SYS_rt_sigreturn,
        SYS_sigaltstack,
        SYS_clone,
        SYS_clone3,
        SYS_set_robust_list,
        SYS_rseq,
        SYS_sched_getaffinity,
        SYS_clock_nanosleep,
        SYS_nanosleep,
        SYS_madvise,
        SYS_prctl,
        SYS_restart_syscall,
        SYS_close,
    ];
    // Giving a lock back cannot fail.
    let unlocks =
        |registers: user_regs_struct| registers.orig_rax.cast_signed() == SYS_flock && registers.rsi == 8;
    !fixed.contains(&number(pid)) && !ptrace::getregs(pid).is_ok_and(unlocks)
}

#[cfg(target_arch = "x86_64")]
fn reads_input(pid: Pid) -> bool {
    let read = |registers: user_regs_struct| {
        registers.orig_rax.cast_signed() == nix::libc::SYS_read && registers.rdi == 0
    };
    ptrace::getregs(pid).is_ok_and(read)
}

#[cfg(target_arch = "x86_64")]
fn changes_file(pid: Pid) -> bool {
    use nix::libc::*;
    let registers = match ptrace::getregs(pid) {
        Ok(registers) => registers,
        Err(_) => return false,
    };
    let number = registers.orig_rax.cast_signed();
    // Standard output is no file of the plugin's, and may be a pipe.
    let on_file =
        [SYS_write, SYS_pwrite64, SYS_writev, SYS_fsync, SYS_fdatasync, SYS_ftruncate, SYS_fallocate];
    let named =
        [SYS_rename, SYS_renameat, SYS_renameat2, SYS_link, SYS_linkat, SYS_mkdir, SYS_mkdirat, SYS_msync];
    (on_file.contains(&number) && registers.rdi > 2) || named.contains(&number)
}

/// Makes the kernel skip the call (`-1` is no system call).
#[cfg(target_arch = "x86_64")]
fn skip(pid: Pid) {
    let mut registers = ptrace::getregs(pid).unwrap();
    registers.orig_rax = u64::MAX;
    ptrace::setregs(pid, registers).unwrap();
}

#[cfg(target_arch = "x86_64")]
fn set_result(pid: Pid, error: Errno) {
    let mut registers = ptrace::getregs(pid).unwrap();
    registers.rax = i64::from(-(error as i32)).cast_unsigned();
    ptrace::setregs(pid, registers).unwrap();
}
