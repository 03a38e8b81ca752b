//! What nf_tables tells of itself: the generation of a namespace's rules.

use netlink_sys::{Socket, SocketAddr};

use crate::{Error, Result};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN` (`include/uapi/linux/netfilter/nf_tables.h`).
const GET_GENERATION: u16 = 10 << 8 | 16;
/// The answer, `NFT_MSG_NEWGEN`.
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// `NFTA_GEN_ID`, a big-endian number.
const GENERATION_ID: u16 = 1;
/// The header of a netlink message and that of nfnetlink behind it.
const HEADERS: usize = 16 + 4;

/// Returns a number that grows by one with every transaction on the nf_tables rules of the calling thread's network
/// namespace, whoever makes it; it wraps around.
///
/// Equal numbers mean that nobody has changed a rule in between. Costs one round trip of some microseconds. Rules of
/// the older ip_tables do not count.
///
/// # Errors
/// When the kernel has no nf_tables or the caller no `CAP_NET_ADMIN`.
pub fn generation() -> Result<u32> {
    const ACTION: &str = "read the generation of the nf_tables rules";
    let failed = |cause| Error::io(ACTION, cause);
    let mut socket = Socket::new(libc::NETLINK_NETFILTER as isize).map_err(failed)?;
    socket.bind_auto().map_err(failed)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
    socket.send(&request(), 0).map_err(failed)?;
    let mut answer = Vec::with_capacity(4096);
    // The kernel answers within `send`.
    socket.recv(&mut answer, libc::MSG_DONTWAIT).map_err(failed)?;
    read_answer(&answer)
        .map_err(|errno| Error::Netlink { action: ACTION.to_owned(), index: 0, errno, message: None })?
        .ok_or_else(|| Error::Protocol { action: ACTION.to_owned(), detail: "no number in it".to_owned() })
}

fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADERS);
    bytes.extend((HEADERS as u32).to_ne_bytes());
    bytes.extend(GET_GENERATION.to_ne_bytes());
    bytes.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Sequence and port are of no use for one question, and so is the rest of nfnetlink's header.
    bytes.resize(HEADERS, 0);
    bytes
}

/// The number in an answer; an error number where the kernel refused.
fn read_answer(bytes: &[u8]) -> Result<Option<u32>, i32> {
    let field = |at: usize| bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).map(u16::from_ne_bytes);
    let number = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
    match field(4) {
        Some(kind) if kind == libc::NLMSG_ERROR as u16 => {
            Err(number(16).map_or(libc::EPROTO, |code| i32::from_ne_bytes(code).saturating_neg()))
        }
        Some(NEW_GENERATION) => {
            let mut at = HEADERS;
            while let (Some(length), Some(kind)) = (field(at), field(at + 2)) {
                if kind == GENERATION_ID {
                    return Ok(number(at + 4).map(u32::from_be_bytes));
                }
                at += usize::from(length).max(4).next_multiple_of(4);
            }
            Ok(None)
        }
        Some(_) | None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_among_other_attributes() {
        let mut bytes = vec![0_u8; HEADERS];
        bytes[4..6].copy_from_slice(&NEW_GENERATION.to_ne_bytes());
        for (kind, value) in [(2_u16, 7_u32), (GENERATION_ID, 4711)] {
            bytes.extend(8_u16.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value.to_be_bytes());
        }
        assert_eq!(read_answer(&bytes), Ok(Some(4711)));
        assert_eq!(read_answer(&bytes[..24]), Ok(None));
        assert_eq!(read_answer(&bytes[..30]), Ok(None));
        assert_eq!(read_answer(&[]), Ok(None));
    }

    #[test]
    fn a_refusal_is_its_error_number() {
        let mut bytes = vec![0_u8; 36];
        bytes[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        bytes[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(read_answer(&bytes), Err(libc::EPERM));
    }

    #[test]
    fn equal_while_nobody_changes_a_rule() {
        assert!(crate::process::is_root(), "this test needs root: it makes a network namespace");
        let path =
            std::path::Path::new(crate::netns::NETNS_DIR).join(format!("nd-gen-{}", std::process::id()));
        let namespace = crate::Namespace::create(&path).unwrap();
        let (first, second, changed) = namespace
            .run(|| {
                let first = generation().unwrap();
                let second = generation().unwrap();
                let masquerade = crate::masquerade::Masquerade {
                    owner: crate::masquerade::NODE.to_owned(),
                    pod_cidrs: vec!["172.16.1.0/24".parse().unwrap()],
                    keep: Vec::new(),
                };
                crate::masquerade::ensure(&masquerade).unwrap();
                (first, second, generation().unwrap())
            })
            .unwrap();
        crate::Namespace::remove(&path).unwrap();
        assert_eq!(first, second);
        assert_eq!(changed, first.wrapping_add(1));
    }
}
