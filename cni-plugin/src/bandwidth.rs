//! How fast a pod may receive and send: the capability `bandwidth`, with the keys of the reference plugin of that name.
//!
//! What a pod receives is what the host's end of its link sends, so a token bucket stands there. What it sends is
//! redirected, on arrival at the host's end, to an intermediate link (`ifb`) of the pod, which sends it on at a rate. None
//! of it is within the pod's reach. The bucket and the redirection go with the link; the intermediate link is removed
//! beside it, and is found by its name, which follows from the attachment, and by its alias.

use std::time::Duration;

use netd_ipam::Owner;
use netd_kernel::netlink::{Batch, IngressFilter, TokenBucket};
use netd_kernel::{Ifindex, Link, Netlink};
use serde::Deserialize;

use crate::attachment;
use crate::config::Config;
use crate::error::{CniError, Code};
use crate::naming;

/// How long a packet waits at most before the burst is counted; the reference plugin's.
const LATENCY: Duration = Duration::from_millis(25);
/// Asked behind the guard.
const PRIORITY: u16 = 2;
/// Bytes of an Ethernet header with a VLAN tag.
const ETHERNET_HEADER: u32 = 18;
/// Bursts that container runtimes write where nobody has named one: containerd, CRI-O.
const UNNAMED_BURSTS: [u64; 2] = [u32::MAX as u64, i32::MAX as u64];
/// The time in which an unnamed burst passes at the rate.
const UNNAMED_BURST_TIME: Duration = Duration::from_millis(100);
/// The shortest unnamed burst, in bytes: a few packets of segmentation offload, which are cut up where they do not fit.
const UNNAMED_BURST_MIN: u64 = 128 * 1024;

/// Limits as they are written: in bits a second, and in bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bandwidth {
    /// What the pod receives.
    pub ingress_rate: u64,
    /// What it receives at once after a rest.
    pub ingress_burst: u64,
    /// What it sends.
    pub egress_rate: u64,
    /// What it sends at once after a rest.
    pub egress_burst: u64,
}

/// Limits as the kernel takes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// What the pod receives.
    pub ingress: Option<TokenBucket>,
    /// What it sends.
    pub egress: Option<TokenBucket>,
}

impl Bandwidth {
    /// Reads the limits; `None` where there are none.
    ///
    /// # Errors
    /// Code 7, as with the reference plugin, for a rate without a burst, a burst without a rate, and one of 4 GiB and more;
    /// and for limits that would let nothing pass.
    pub fn limits(&self) -> Result<Limits, CniError> {
        Ok(Limits {
            ingress: bucket("ingress", self.ingress_rate, self.ingress_burst)?,
            egress: bucket("egress", self.egress_rate, self.egress_burst)?,
        })
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Limits {
    /// Refuses a burst that the longest packet does not fit in: no packet of that length would ever pass.
    ///
    /// # Errors
    /// Code 7.
    pub fn check_mtu(&self, mtu: u32) -> Result<(), CniError> {
        for (name, bucket) in [("ingress", self.ingress), ("egress", self.egress)] {
            let Some(bucket) = bucket.filter(|bucket| bucket.burst < mtu.saturating_add(ETHERNET_HEADER))
            else {
                continue;
            };
            let needed = 8 * (u64::from(mtu) + u64::from(ETHERNET_HEADER));
            let msg = format!("bandwidth: {name}Burst is less than one packet ({} bytes)", bucket.burst);
            return Err(CniError::new(Code::InvalidConfig, msg)
                .because(format!("packets of {mtu} bytes would never pass"))
                .and(format!("it is in bits: at least {needed}")));
        }
        Ok(())
    }
}

fn bucket(name: &str, rate: u64, burst: u64) -> Result<Option<TokenBucket>, CniError> {
    let invalid = |msg: String| Err(CniError::new(Code::InvalidConfig, format!("bandwidth: {msg}")));
    match (rate, burst) {
        (0, 0) => return Ok(None),
        (0, _) => return invalid(format!("if {name}Burst is set, {name}Rate must also be set")),
        (_, 0) => return invalid(format!("if {name}Rate is set, {name}Burst must also be set")),
        (1..8, _) => {
            return invalid(format!("{name}Rate {rate} is less than a byte a second: it is in bits"));
        }
        _ => {}
    }
    let Some(burst) = u32::try_from(burst_of(rate, burst) / 8).ok().filter(|bytes| *bytes < u32::MAX) else {
        return invalid(format!("{name}Burst cannot be more than 4 GiB ({} bits)", u64::from(u32::MAX) * 8));
    };
    Ok(Some(TokenBucket::new(rate / 8, burst, LATENCY)))
}

/// The burst in bits. One that nobody has named would else let half a gigabyte pass before the rate counts, and as much
/// wait behind it.
fn burst_of(rate: u64, burst: u64) -> u64 {
    if !UNNAMED_BURSTS.contains(&burst) {
        return burst;
    }
    let passing = u128::from(rate) * UNNAMED_BURST_TIME.as_millis() / 1000;
    u64::try_from(passing).unwrap_or(u64::MAX).max(8 * UNNAMED_BURST_MIN).min(burst)
}

/// The limits of an attachment; none is the usual case and costs nothing.
///
/// # Errors
/// As [`Bandwidth::limits`] and [`Limits::check_mtu`].
pub fn wanted(config: &Config, mtu: u32) -> Result<Limits, CniError> {
    let limits = config.bandwidth.limits()?;
    limits.check_mtu(mtu)?;
    Ok(limits)
}

/// Makes a link as fast as it is to be, before its other end is switched on; `guarded` when it has a place for filters.
///
/// # Errors
/// What the kernel refused. Some may be left then: see [`find`].
pub fn add(
    netlink: &mut Netlink,
    (network, owner): (&str, &Owner),
    (host, mtu): (Ifindex, u32),
    limits: &Limits,
    guarded: bool,
) -> netd_kernel::Result<()> {
    let mut batch = Batch::new();
    if let Some(bucket) = &limits.ingress {
        batch.add_token_bucket(host, bucket);
    }
    if let Some(bucket) = &limits.egress {
        let ifb = make_ifb(netlink, network, owner, mtu)?;
        batch.add_token_bucket(ifb, bucket);
        if !guarded {
            batch.add_clsact(host);
        }
        batch.add_ingress_redirect(host, PRIORITY, ifb);
    }
    if batch.is_empty() { Ok(()) } else { netlink.send(&batch) }
}

/// Explains a refusal of the kernel that a limit may be the cause of.
pub fn hint(error: &netd_kernel::Error) -> Option<&'static str> {
    /// `ENOENT` and `EOPNOTSUPP` (`asm-generic/errno.h`): the module is not there.
    const ABSENT: [i32; 2] = [2, 95];
    let netd_kernel::Error::Netlink { action, errno, .. } = error else { return None };
    let of_limits = ["limit link", "redirect what", "make ifb"].iter().any(|start| action.starts_with(start));
    (of_limits && ABSENT.contains(errno))
        .then_some("bandwidth needs sch_tbf, sch_ingress, cls_u32, act_mirred and ifb in the kernel")
}

/// Makes the intermediate link, in place of one that an attachment of the same name has left.
fn make_ifb(netlink: &mut Netlink, network: &str, owner: &Owner, mtu: u32) -> netd_kernel::Result<Ifindex> {
    let (name, alias) = (naming::shaper(owner), naming::shaper_alias(network, owner));
    match netlink.add_ifb(&name, mtu, &alias) {
        Err(error) if error.is_exists() => {
            attachment::delete_aside(netlink)?;
            if let Some(left) = find(netlink, owner)? {
                netlink.delete_link(left.index)?;
            }
            netlink.add_ifb(&name, mtu, &alias)
        }
        made => made,
    }
}

/// Finds the intermediate link of an attachment, also one that was put aside; a link of that name that says it is
/// another's is left out.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn find(netlink: &mut Netlink, owner: &Owner) -> netd_kernel::Result<Option<Link>> {
    let known = |alias: &str| naming::is_shaper_alias(alias) || naming::is_aside(alias);
    // Without an alias it is ours as well: the call was killed between two changes.
    let ours = |link: &Link| link.kind.as_deref() == Some("ifb") && link.alias.as_deref().is_none_or(known);
    Ok(netlink.link(&naming::shaper(owner))?.filter(ours))
}

/// Says what of the limits is missing or different, a sentence each.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn faults(
    netlink: &mut Netlink,
    owner: &Owner,
    host: Ifindex,
    limits: &Limits,
) -> netd_kernel::Result<Vec<String>> {
    let mut faults = Vec::new();
    if let Some(bucket) = &limits.ingress {
        faults.extend(bucket_fault(netlink, "receives", host, bucket)?);
    }
    let Some(bucket) = &limits.egress else { return Ok(faults) };
    let name = naming::shaper(owner);
    let Some(ifb) = find(netlink, owner)?.filter(|link| !link.alias.as_deref().is_some_and(naming::is_aside))
    else {
        faults.push(format!("link {name}, which limits what the pod sends, is missing"));
        return Ok(faults);
    };
    if !ifb.up {
        faults.push(format!("link {name}, which limits what the pod sends, is down"));
    }
    faults.extend(bucket_fault(netlink, "sends", ifb.index, bucket)?);
    let redirected =
        |filter: &IngressFilter| matches!(filter, IngressFilter::Redirect { to, .. } if *to == ifb.index);
    if !netlink.ingress_filters(host)?.iter().any(redirected) {
        faults.push(format!("what the pod sends is not redirected to {name}, which limits it"));
    }
    Ok(faults)
}

fn bucket_fault(
    netlink: &mut Netlink,
    verb: &str,
    link: Ifindex,
    wanted: &TokenBucket,
) -> netd_kernel::Result<Option<String>> {
    Ok(match netlink.token_bucket(link)? {
        None => Some(format!("the limit of what the pod {verb} is gone")),
        Some(found) if wanted.is(&found) => None,
        Some(found) => Some(format!(
            "the limit of what the pod {verb} is {} bytes a second, burst {}, queue {}, and not {}, {}, {}",
            found.rate,
            found.burst(),
            found.limit,
            wanted.rate,
            wanted.burst,
            wanted.limit
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(ingress: (u64, u64), egress: (u64, u64)) -> Result<Limits, CniError> {
        let ((ingress_rate, ingress_burst), (egress_rate, egress_burst)) = (ingress, egress);
        Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst }.limits()
    }

    #[test]
    fn bits_become_bytes_and_the_queue_holds_25_ms_and_a_burst() {
        let found = limits((8_000_000, 160_000), (16_000_000, 240_000)).unwrap();
        assert_eq!(found.ingress, Some(TokenBucket { rate: 1_000_000, burst: 20_000, limit: 45_000 }));
        assert_eq!(found.egress, Some(TokenBucket { rate: 2_000_000, burst: 30_000, limit: 80_000 }));
        assert_eq!(limits((0, 0), (0, 0)).unwrap(), Limits::default());
    }

    #[test]
    fn what_the_reference_plugin_refuses_is_refused() {
        for (rate, burst, word) in [
            (1000, 0, "ingressBurst must also be set"),
            (0, 1000, "ingressRate must also be set"),
            (1000, u64::from(u32::MAX) * 8, "4 GiB"),
            (7, 1000, "bits"),
        ] {
            let error = limits((rate, burst), (0, 0)).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(limits((8, u64::from(u32::MAX) * 8 - 8), (0, 0)).is_ok());
        assert!(limits((0, 0), (1000, 0)).unwrap_err().msg.contains("egressBurst"));
    }

    #[test]
    fn a_burst_that_nobody_named_is_what_passes_in_a_moment() {
        for unnamed in UNNAMED_BURSTS {
            let burst = |rate| limits((rate, unnamed), (0, 0)).unwrap().ingress.unwrap().burst;
            assert_eq!(burst(1_000_000), 128 * 1024);
            assert_eq!(burst(1_000_000_000), 12_500_000);
            assert_eq!(u64::from(burst(400_000_000_000)), unnamed / 8);
        }
    }

    #[test]
    fn a_burst_shorter_than_a_packet_is_refused() {
        let found = limits((8_000_000, 1500 * 8), (0, 0)).unwrap();
        let error = found.check_mtu(1500).unwrap_err();
        assert!(error.to_string().contains("at least 12144"), "{error}");
        assert!(found.check_mtu(1400).is_ok());
    }
}
