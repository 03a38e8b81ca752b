//! Rules: what a packet must be, and what becomes of it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Attributes, Family, wire};

/// A rule in the making: its expressions and its comment.
pub(crate) struct Rule {
    pub(super) expressions: Attributes,
    pub(super) comment: String,
}

impl Rule {
    pub(crate) fn new(comment: String) -> Self {
        Self { expressions: Attributes::default(), comment }
    }

    pub(crate) fn comment(&self) -> &str {
        &self.comment
    }

    pub(crate) fn source(self, network: IpNetwork) -> Self {
        let offset = if network.is_ipv4() { 12 } else { 8 };
        self.address(network, offset)
    }

    pub(crate) fn destination(self, network: IpNetwork) -> Self {
        let offset = if network.is_ipv4() { 16 } else { 24 };
        self.address(network, offset)
    }

    pub(crate) fn goto(self, chain: &str) -> Self {
        self.verdict(wire::NFT_GOTO, Some(chain))
    }

    /// Goes through the chain, and on behind this rule when nothing there ended it.
    pub(crate) fn jump(self, chain: &str) -> Self {
        self.verdict(wire::NFT_JUMP, Some(chain))
    }

    /// Ends the way through this hook's chain without a change.
    pub(crate) fn accept(self) -> Self {
        self.verdict(wire::NF_ACCEPT, None)
    }

    pub(crate) fn return_(self) -> Self {
        self.verdict(wire::NFT_RETURN, None)
    }

    pub(crate) fn masquerade(mut self, flags: u32) -> Self {
        let mut data = Attributes::default();
        data.number(wire::NFTA_MASQ_FLAGS, flags);
        self.expression("masq", data);
        self
    }

    /// `payload load => reg 1; reg 1 = reg 1 & mask; cmp reg 1 == network`
    fn address(mut self, network: IpNetwork, offset: u32) -> Self {
        const REGISTER: u32 = wire::NFT_REG_1;
        let (address, mask) = (octets(network.network()), octets(network.mask()));
        let length = address.len() as u32;
        self.load(wire::NFT_PAYLOAD_NETWORK_HEADER, offset, length, REGISTER);
        if mask.iter().any(|byte| *byte != 0xff) {
            let mut bitwise = Attributes::default();
            bitwise.number(wire::NFTA_BITWISE_SREG, REGISTER);
            bitwise.number(wire::NFTA_BITWISE_DREG, REGISTER);
            bitwise.number(wire::NFTA_BITWISE_LEN, length);
            bitwise.nest(wire::NFTA_BITWISE_MASK, value(&mask));
            bitwise.nest(wire::NFTA_BITWISE_XOR, value(&vec![0; mask.len()]));
            self.expression("bitwise", bitwise);
        }
        self.compare(wire::NFT_CMP_EQ, &address);
        self
    }

    /// Goes on only for packets to an address of this machine: `fib daddr type local`.
    pub(crate) fn local_destination(mut self) -> Self {
        let mut fib = Attributes::default();
        fib.number(wire::NFTA_FIB_DREG, wire::NFT_REG_1);
        fib.number(wire::NFTA_FIB_RESULT, wire::NFT_FIB_RESULT_ADDRTYPE);
        fib.number(wire::NFTA_FIB_FLAGS, wire::NFTA_FIB_F_DADDR);
        self.expression("fib", fib);
        self.compare(wire::NFT_CMP_EQ, &u32::from(libc::RTN_LOCAL).to_ne_bytes());
        self
    }

    /// Goes on only for packets that come in by the link, or by another one.
    pub(crate) fn input_link(self, name: &str, is: bool) -> Self {
        self.link(wire::NFT_META_IIFNAME, name, is)
    }

    /// Goes on only for packets that leave by the link, or by another one.
    pub(crate) fn output_link(self, name: &str, is: bool) -> Self {
        self.link(wire::NFT_META_OIFNAME, name, is)
    }

    pub(crate) fn drop(self) -> Self {
        self.verdict(wire::NF_DROP, None)
    }

    /// Goes on only for packets whose source and destination are together in the set.
    pub(crate) fn both_addresses_in(mut self, family: Family, set: &str) -> Self {
        let (source, destination, length) = family.addresses();
        self.load(wire::NFT_PAYLOAD_NETWORK_HEADER, source, length, wire::NFT_REG_1);
        self.load(wire::NFT_PAYLOAD_NETWORK_HEADER, destination, length, family.second_register());
        let mut lookup = Attributes::default();
        lookup.text(wire::NFTA_LOOKUP_SET, set);
        lookup.number(wire::NFTA_LOOKUP_SREG, wire::NFT_REG_1);
        self.expression("lookup", lookup);
        self
    }

    /// Sends packets where the map says: `dnat to [daddr .] meta l4proto . th dport map @map`.
    pub(crate) fn translate_by(mut self, family: Family, map: &str, with_address: bool) -> Self {
        let (_, destination, length) = family.addresses();
        let mut register = wire::NFT_REG_1;
        if with_address {
            self.load(wire::NFT_PAYLOAD_NETWORK_HEADER, destination, length, register);
            register = family.second_register();
        }
        let mut protocol = Attributes::default();
        protocol.number(wire::NFTA_META_DREG, register);
        protocol.number(wire::NFTA_META_KEY, wire::NFT_META_L4PROTO);
        self.expression("meta", protocol);
        // Registers of four bytes are numbered from 8; the first four are the bytes of the register number 1.
        let register = match register {
            wire::NFT_REG_1 => wire::NFT_REG32_00 + 1,
            wire::NFT_REG_2 => wire::NFT_REG32_00 + 5,
            small => small + 1,
        };
        self.load(wire::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, register);
        let mut lookup = Attributes::default();
        lookup.text(wire::NFTA_LOOKUP_SET, map);
        lookup.number(wire::NFTA_LOOKUP_SREG, wire::NFT_REG_1);
        lookup.number(wire::NFTA_LOOKUP_DREG, wire::NFT_REG_1);
        self.expression("lookup", lookup);
        let mut nat = Attributes::default();
        nat.number(wire::NFTA_NAT_TYPE, wire::NFT_NAT_DNAT);
        nat.number(wire::NFTA_NAT_FAMILY, u32::from(family.number()));
        nat.number(wire::NFTA_NAT_REG_ADDR_MIN, wire::NFT_REG_1);
        nat.number(wire::NFTA_NAT_REG_PROTO_MIN, family.second_register());
        self.expression("nat", nat);
        self
    }

    fn link(mut self, key: u32, name: &str, is: bool) -> Self {
        let mut meta = Attributes::default();
        meta.number(wire::NFTA_META_DREG, wire::NFT_REG_1);
        meta.number(wire::NFTA_META_KEY, key);
        self.expression("meta", meta);
        let mut bytes = [0_u8; libc::IFNAMSIZ];
        bytes.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        self.compare(if is { wire::NFT_CMP_EQ } else { wire::NFT_CMP_NEQ }, &bytes);
        self
    }

    fn load(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        let mut load = Attributes::default();
        load.number(wire::NFTA_PAYLOAD_DREG, register);
        load.number(wire::NFTA_PAYLOAD_BASE, base);
        load.number(wire::NFTA_PAYLOAD_OFFSET, offset);
        load.number(wire::NFTA_PAYLOAD_LEN, length);
        self.expression("payload", load);
    }

    /// `cmp reg 1`
    fn compare(&mut self, operator: u32, bytes: &[u8]) {
        let mut compare = Attributes::default();
        compare.number(wire::NFTA_CMP_SREG, wire::NFT_REG_1);
        compare.number(wire::NFTA_CMP_OP, operator);
        compare.nest(wire::NFTA_CMP_DATA, value(bytes));
        self.expression("cmp", compare);
    }

    fn verdict(mut self, code: i32, chain: Option<&str>) -> Self {
        let mut verdict = Attributes::default();
        verdict.bytes(wire::NFTA_VERDICT_CODE, &code.to_be_bytes());
        if let Some(chain) = chain {
            verdict.text(wire::NFTA_VERDICT_CHAIN, chain);
        }
        let mut data = Attributes::default();
        data.nest(wire::NFTA_DATA_VERDICT, verdict);
        let mut immediate = Attributes::default();
        immediate.number(wire::NFTA_IMMEDIATE_DREG, wire::NFT_REG_VERDICT);
        immediate.nest(wire::NFTA_IMMEDIATE_DATA, data);
        self.expression("immediate", immediate);
        self
    }

    fn expression(&mut self, name: &str, data: Attributes) {
        let mut expression = Attributes::default();
        expression.text(wire::NFTA_EXPR_NAME, name);
        expression.nest(wire::NFTA_EXPR_DATA, data);
        self.expressions.nest(wire::NFTA_LIST_ELEM, expression);
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn value(bytes: &[u8]) -> Attributes {
    let mut data = Attributes::default();
    data.bytes(wire::NFTA_DATA_VALUE, bytes);
    data
}
