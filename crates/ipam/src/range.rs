//! Which addresses a network may hand out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::{Error, Result};

/// A stretch of consecutive addresses in one subnet, with the gateway that is never handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    subnet: IpNetwork,
    first: u128,
    last: u128,
    gateway: IpAddr,
}

impl Range {
    /// Makes a range of `subnet`; what is `None` is the widest that is possible, and the gateway the first address.
    ///
    /// The network address is never part of it, nor is the broadcast address of IPv4.
    ///
    /// # Errors
    /// [`Error::BadRange`] when the subnet has host bits or room for fewer than two addresses, or when a bound or
    /// the gateway lies outside it.
    pub fn new(
        subnet: IpNetwork,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self> {
        let bad = |reason| Error::BadRange { range: subnet.to_string(), reason };
        if subnet.ip() != subnet.network() {
            return Err(bad("host bits are set; write the subnet's first address"));
        }
        let width = if subnet.is_ipv4() { 32 } else { 128 };
        if u32::from(subnet.prefix()) + 2 > width {
            return Err(bad("too small: a subnet of at least 4 addresses is needed"));
        }
        let base = to_number(subnet.network());
        let size = 1_u128.checked_shl(width - u32::from(subnet.prefix()));
        let top = base + size.map_or(u128::MAX, |size| size - 1);
        let top = if subnet.is_ipv4() { top - 1 } else { top };
        let inside = |address: IpAddr, reason| {
            let number = to_number(address);
            let same_family = address.is_ipv4() == subnet.is_ipv4();
            if same_family && number > base && number <= top { Ok(number) } else { Err(bad(reason)) }
        };
        let first =
            start.map_or(Ok(base + 1), |a| inside(a, "rangeStart is no host address of the subnet"))?;
        let last = end.map_or(Ok(top), |a| inside(a, "rangeEnd is no host address of the subnet"))?;
        if first > last {
            return Err(bad("rangeStart is behind rangeEnd"));
        }
        let gateway = match gateway {
            Some(address) => {
                inside(address, "gateway is no host address of the subnet")?;
                address
            }
            None => to_address(base + 1, subnet.is_ipv4()),
        };
        Ok(Self { subnet, first, last, gateway })
    }

    /// The subnet the range lies in.
    pub fn subnet(&self) -> IpNetwork {
        self.subnet
    }

    /// The gateway of the subnet.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Whether the range is of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.subnet.is_ipv4()
    }

    /// Whether `address` may be handed out from this range.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && address != self.gateway && {
            let number = to_number(address);
            (self.first..=self.last).contains(&number)
        }
    }

    /// How many addresses the range can hand out in all.
    pub fn capacity(&self) -> u128 {
        let gateway = to_number(self.gateway);
        let taken = u128::from((self.first..=self.last).contains(&gateway));
        self.last - self.first + 1 - taken
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    /// The addresses that the range can hand out: one stretch, or those before and behind the gateway.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let span = |first, last| Span { v4: self.is_ipv4(), first, last };
        let gateway = to_number(self.gateway);
        if !(self.first..=self.last).contains(&gateway) {
            return vec![span(self.first, self.last)];
        }
        let before = (gateway > self.first).then(|| span(self.first, gateway - 1));
        let behind = (gateway < self.last).then(|| span(gateway + 1, self.last));
        before.into_iter().chain(behind).collect()
    }
}

/// Consecutive addresses of one family, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) v4: bool,
    pub(crate) first: u128,
    pub(crate) last: u128,
}

impl Span {
    /// How many addresses there are; one too few where that is more than the type holds.
    pub(crate) fn size(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.v4 == address.is_ipv4() && (self.first..=self.last).contains(&to_number(address))
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.v4 == other.v4 && self.first <= other.last && other.first <= self.last
    }

    pub(crate) fn lies_in(&self, other: &Self) -> bool {
        self.v4 == other.v4 && other.first <= self.first && self.last <= other.last
    }

    /// What of it lies in none of `others`, which are in order and do not overlap.
    pub(crate) fn without<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> Vec<Self> {
        let (mut rest, mut from) = (Vec::new(), Some(self.first));
        for other in others.into_iter().filter(|other| other.overlaps(self)) {
            let Some(start) = from else { break };
            if start < other.first {
                rest.push(Self { first: start, last: other.first - 1, ..*self });
            }
            from = other.last.checked_add(1);
        }
        if let Some(first) = from.filter(|first| *first <= self.last) {
            rest.push(Self { first, ..*self });
        }
        rest
    }
}

/// Cuts stretches at each other's ends, so that none overlaps another and each given one is made of whole ones.
pub(crate) fn cut(spans: &[Span]) -> Vec<Span> {
    let mut pieces = Vec::new();
    for v4 in [true, false] {
        let own = || spans.iter().filter(|span| span.v4 == v4);
        let mut starts: Vec<u128> =
            own().flat_map(|span| [Some(span.first), span.last.checked_add(1)]).flatten().collect();
        starts.sort_unstable();
        starts.dedup();
        for (place, first) in starts.iter().enumerate() {
            let last = starts.get(place + 1).map_or(u128::MAX, |next| next - 1);
            let piece = Span { v4, first: *first, last };
            if own().any(|span| piece.lies_in(span)) {
                pieces.push(piece);
            }
        }
    }
    pieces.sort_unstable();
    pieces
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v4 = self.is_ipv4();
        write!(f, "{} ({} to {})", self.subnet, to_address(self.first, v4), to_address(self.last, v4))
    }
}

/// Ranges of one family from which an attachment gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    ranges: Vec<Range>,
}

impl Pool {
    /// Makes a pool of ranges.
    ///
    /// # Errors
    /// [`Error::BadRange`] when there is no range, when families are mixed or when two ranges overlap.
    pub fn new(ranges: Vec<Range>) -> Result<Self> {
        let Some(first) = ranges.first() else {
            return Err(Error::BadRange { range: "[]".to_owned(), reason: "a pool without a range" });
        };
        if let Some(other) = ranges.iter().find(|range| range.is_ipv4() != first.is_ipv4()) {
            return Err(Error::BadRange { range: other.to_string(), reason: "IPv4 and IPv6 in one pool" });
        }
        let pool = Self { ranges };
        pool.overlap_within().map_or(Ok(()), Err)?;
        Ok(pool)
    }

    /// Finds an overlap between this pool and another one of the same network.
    ///
    /// # Errors
    /// [`Error::BadRange`] names the overlapping range.
    pub fn check_apart_from(&self, other: &Self) -> Result<()> {
        match self.ranges.iter().find(|mine| other.ranges.iter().any(|theirs| mine.overlaps(theirs))) {
            Some(range) => Err(Error::BadRange {
                range: range.to_string(),
                reason: "overlaps another range of the network",
            }),
            None => Ok(()),
        }
    }

    /// The ranges in the order they are used.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The range that `address` can come from.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(address))
    }

    /// How many addresses the pool can hand out in all.
    pub fn capacity(&self) -> u128 {
        self.ranges.iter().fold(0, |sum: u128, range| sum.saturating_add(range.capacity()))
    }

    fn overlap_within(&self) -> Option<Error> {
        self.ranges.iter().enumerate().find_map(|(place, range)| {
            let later = self.ranges.iter().skip(place + 1);
            later.into_iter().any(|other| range.overlaps(other)).then(|| Error::BadRange {
                range: range.to_string(),
                reason: "overlaps another range of the network",
            })
        })
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, range) in self.ranges.iter().enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            write!(f, "{separator}{}", range.subnet)?;
        }
        Ok(())
    }
}

/// The address as a number; the families do not share numbers only because no one compares across them.
pub(crate) fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

pub(crate) fn to_address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        // Ranges never leave their subnet, so the number fits.
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> Range {
        Range::new(subnet.parse().unwrap(), None, None, None).unwrap()
    }

    fn addresses(range: &Range) -> Vec<String> {
        let spans = range.spans();
        let each = spans.iter().flat_map(|span| span.first..=span.last);
        each.map(|number| to_address(number, range.is_ipv4()).to_string()).collect()
    }

    #[test]
    fn stretches_are_cut_at_each_others_ends() {
        let span = |first, last| Span { v4: true, first, last };
        assert_eq!(
            cut(&[span(1, 9), span(5, 20), span(30, 30)]),
            [span(1, 4), span(5, 9), span(10, 20), span(30, 30)]
        );
        let all = Span { v4: false, first: 0, last: u128::MAX };
        assert_eq!(cut(&[all, Span { first: 7, last: 7, ..all }]).len(), 3);
        assert_eq!(span(1, 9).without(&[span(3, 4), span(9, 12)]), [span(1, 2), span(5, 8)]);
        assert_eq!(span(1, 9).without(&[span(0, 9)]), []);
        assert_eq!(span(1, 9).without(&[]), [span(1, 9)]);
    }

    #[test]
    fn a_range_leaves_out_network_broadcast_and_gateway() {
        let all = addresses(&range("10.1.2.0/29"));
        assert_eq!(all, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        let ip = |text: &str| Some(text.parse().unwrap());
        let middle =
            Range::new("10.1.2.0/29".parse().unwrap(), None, ip("10.1.2.4"), ip("10.1.2.3")).unwrap();
        assert_eq!(addresses(&middle), ["10.1.2.1", "10.1.2.2", "10.1.2.4"]);
        assert_eq!(range("10.1.2.0/29").capacity(), 5);
        assert_eq!(range("fd00::/125").capacity(), 6);
        assert_eq!(range("::/0").capacity(), u128::MAX - 1);
        assert_eq!(range("0.0.0.0/0").capacity(), u128::from(u32::MAX) - 2);
    }

    #[test]
    fn an_impossible_range_is_refused() {
        let ip = |text: &str| Some(text.parse().unwrap());
        let net = |text: &str| text.parse().unwrap();
        assert!(Range::new(net("10.1.2.1/24"), None, None, None).is_err(), "host bits");
        assert!(Range::new(net("10.1.2.0/31"), None, None, None).is_err(), "too small");
        assert!(Range::new(net("fd00::/127"), None, None, None).is_err(), "too small");
        assert!(Range::new(net("10.1.2.0/24"), ip("10.1.3.1"), None, None).is_err(), "start outside");
        assert!(Range::new(net("10.1.2.0/24"), ip("10.1.2.0"), None, None).is_err(), "start is the network");
        assert!(
            Range::new(net("10.1.2.0/24"), None, ip("10.1.2.255"), None).is_err(),
            "end is the broadcast"
        );
        assert!(Range::new(net("10.1.2.0/24"), ip("10.1.2.9"), ip("10.1.2.8"), None).is_err(), "turned");
        assert!(Range::new(net("10.1.2.0/24"), None, None, ip("10.9.9.9")).is_err(), "gateway outside");
        assert!(Range::new(net("10.1.2.0/24"), ip("fd00::1"), None, None).is_err(), "other family");
        let all = Range::new(net("10.1.2.0/24"), ip("10.1.2.8"), ip("10.1.2.9"), ip("10.1.2.254")).unwrap();
        assert_eq!(all.capacity(), 2);
    }

    #[test]
    fn a_pool_is_of_one_family_without_overlap() {
        assert!(Pool::new(vec![]).is_err());
        assert!(Pool::new(vec![range("10.0.0.0/24"), range("fd00::/64")]).is_err());
        assert!(Pool::new(vec![range("10.0.0.0/24"), range("10.0.0.0/16")]).is_err());
        let pool = Pool::new(vec![range("10.0.0.0/24"), range("10.0.1.0/24")]).unwrap();
        assert_eq!(pool.capacity(), 2 * 253);
        assert!(pool.check_apart_from(&Pool::new(vec![range("10.0.1.0/24")]).unwrap()).is_err());
        assert!(pool.check_apart_from(&Pool::new(vec![range("10.0.2.0/24")]).unwrap()).is_ok());
        assert!(pool.range_of("10.0.1.1".parse().unwrap()).is_none(), "a gateway is no pod address");
        assert!(pool.range_of("10.0.1.2".parse().unwrap()).is_some());
    }
}
