//! What changes in netd's own nf_tables rules, and who changes it.

use std::io;
use std::os::fd::AsRawFd;

use futures::stream::{Stream, StreamExt, unfold};
use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use super::PAUSE;
use crate::nft::{find_attribute, split_first, text};
use crate::{Error, Result};

/// The multicast group of the changes (`NFNLGRP_NFTABLES`, `linux/netfilter/nfnetlink.h`).
const GROUP: u32 = 7;
/// High byte of the kind of every message of nf_tables (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;
/// The message that ends a transaction (`NFT_MSG_NEWGEN`).
const NEW_GENERATION: u16 = 15;
/// The table's name in the message of each other kind, whatever it is of.
const TABLE_NAME: u16 = 1;
/// The process behind a transaction (`NFTA_GEN_PROC_PID`, `NFTA_GEN_PROC_NAME`; Linux 4.14).
const PROCESS_ID: u16 = 2;
const PROCESS_NAME: u16 = 3;
/// How the names of netd's own tables begin.
const OWN: &str = "netd-";
/// Room for a large transaction of somebody else, such as all rules of a service proxy; the kernel counts twice of it.
const BUFFER: usize = 1 << 20;

/// A transaction on nf_tables rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleChange {
    /// Tables of netd were changed.
    Own {
        /// Their names, each once.
        tables: Vec<String>,
        /// The process that did it, 0 where the kernel does not tell.
        process: u32,
        /// Its name.
        program: String,
    },
    /// Some changes were not told: look at everything.
    Missed,
}

/// An open subscription and what it has heard of an unfinished transaction.
struct Listener {
    socket: Option<AsyncFd<Socket>>,
    touched: Vec<String>,
    heard: Vec<RuleChange>,
}

/// Returns the changes of netd's own tables from now on, in the network namespace of the calling thread.
///
/// The stream does not end, and must be polled on a runtime of the same namespace.
///
/// # Errors
/// When the first subscription fails, such as without `CAP_NET_ADMIN` or without nf_tables; a later failure is told as
/// [`RuleChange::Missed`] and tried again.
pub fn rule_changes() -> Result<impl Stream<Item = RuleChange> + Send + use<>> {
    let listener = Listener { socket: Some(subscribe()?), touched: Vec::new(), heard: Vec::new() };
    Ok(unfold(listener, |mut listener| async move {
        let change = listener.next().await;
        Some((change, listener))
    })
    .boxed())
}

fn subscribe() -> Result<AsyncFd<Socket>> {
    let failed = |cause| Error::io("listen to changes of nf_tables rules", cause);
    let mut socket = Socket::new(libc::NETLINK_NETFILTER as isize).map_err(failed)?;
    socket.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
    socket.set_rx_buf_sz(i32::try_from(BUFFER).unwrap_or(i32::MAX)).map_err(failed)?;
    socket.add_membership(GROUP).map_err(failed)?;
    socket.set_non_blocking(true).map_err(failed)?;
    // SAFETY: the socket owns its descriptor, always tells the same one and closes it only when dropped.
    unsafe { AsyncFd::register(socket) }.map_err(|refused| failed(refused.into()))
}

impl Listener {
    async fn next(&mut self) -> RuleChange {
        loop {
            if !self.heard.is_empty() {
                return self.heard.remove(0);
            }
            let Some(socket) = &self.socket else {
                tokio::time::sleep(PAUSE).await;
                match subscribe() {
                    Ok(socket) => self.socket = Some(socket),
                    Err(error) => tracing::warn!(%error, "cannot listen to changes of rules, trying again"),
                }
                if self.socket.is_some() {
                    // Between the two subscriptions anything may have happened.
                    return RuleChange::Missed;
                }
                continue;
            };
            let received = receive(socket).await;
            match received {
                Ok(bytes) => self.hear(&bytes),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.touched.clear();
                    return RuleChange::Missed;
                }
                Err(_) => self.socket = None,
            }
        }
    }

    /// Notes the tables that a transaction touched, and at its end tells them.
    fn hear(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((header, content, next)) = split_first(rest) {
            rest = next;
            if header.kind >> 8 != SUBSYSTEM {
                continue;
            }
            // Behind nfnetlink's own header.
            let content = content.get(4..).unwrap_or_default();
            if header.kind & 0xff == NEW_GENERATION {
                let tables = std::mem::take(&mut self.touched);
                if !tables.is_empty() {
                    let number = find_attribute(content, PROCESS_ID).and_then(|bytes| bytes.try_into().ok());
                    let process = number.map(u32::from_be_bytes).unwrap_or_default();
                    let program = find_attribute(content, PROCESS_NAME).map(text).unwrap_or_default();
                    self.heard.push(RuleChange::Own { tables, process, program });
                }
                continue;
            }
            let table = find_attribute(content, TABLE_NAME).map(text).unwrap_or_default();
            if table.starts_with(OWN) && !self.touched.contains(&table) {
                self.touched.push(table);
            }
        }
    }
}

/// One datagram.
async fn receive(socket: &AsyncFd<Socket>) -> io::Result<Vec<u8>> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            let mut buffer = Vec::with_capacity(64 * 1024);
            socket.get_ref().recv(&mut buffer, libc::MSG_DONTWAIT)?;
            Ok(buffer)
        });
        match received {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(done) => return done,
            // It was not readable after all.
            Err(_) => tracing::trace!(fd = socket.as_raw_fd(), "nothing to read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::masquerade::{self, Masquerade};
    use crate::monitor::tests::in_namespace;

    async fn next(stream: &mut (impl Stream<Item = RuleChange> + Unpin)) -> RuleChange {
        let wait = tokio::time::timeout(Duration::from_secs(10), stream.next());
        wait.await.expect("the change was not told in time").unwrap()
    }

    #[test]
    fn a_change_of_an_own_table_is_told_with_the_process_and_others_are_not() {
        in_namespace("rules", || async {
            let mut stream = rule_changes().unwrap();
            let masquerade = Masquerade {
                owner: masquerade::NODE.to_owned(),
                pod_cidrs: vec!["172.16.1.0/24".parse().unwrap()],
                keep: Vec::new(),
            };
            let other = crate::nft::Family::V4;
            let mut batch = crate::nft::Batch::new();
            batch.add_table(other, "others", true);
            crate::nft::Conversation::open().unwrap().commit(batch, "add a table").unwrap();
            for change in [true, false] {
                if change {
                    masquerade::ensure(&masquerade).unwrap();
                } else {
                    masquerade::remove().unwrap();
                }
                let told = next(&mut stream).await;
                let RuleChange::Own { tables, process, program } = told else { panic!("{told:?}") };
                assert_eq!(tables, [masquerade::TABLE]);
                // The kernel tells the thread, in its own words.
                assert!(process > 0 && !program.is_empty());
            }
        });
    }

    #[test]
    fn cut_short_messages_are_no_panic() {
        let mut listener = Listener { socket: None, touched: Vec::new(), heard: Vec::new() };
        let bytes: Vec<u8> = (0..64)
            .map(|n| {
                if n == 0 {
                    64
                } else if n == 5 {
                    10
                } else {
                    0
                }
            })
            .collect();
        (0..bytes.len()).for_each(|end| listener.hear(&bytes[..end]));
        assert!(listener.heard.is_empty());
    }
}
