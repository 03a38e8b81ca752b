//! Programs for the kernel's packet filter in its first form (classic BPF, linux/filter.h): loads, comparisons and a
//! verdict; no loops, no maps, and no privilege beyond that of the place they are attached to.
//!
//! A load behind the end of the packet ends the program with the verdict 0 (Documentation/networking/filter.rst): ask
//! for the length first.

use crate::{Error, Result};

/// Loads of what is no byte of the packet stand at this offset (`SKF_AD_OFF`).
const ANCILLARY: u32 = (-0x1000_i32) as u32;
/// Whether the packet had an 802.1Q tag, which the kernel has taken out (`SKF_AD_VLAN_TAG_PRESENT`).
const VLAN_TAG_PRESENT: u32 = 48;

// linux/bpf_common.h: class | size | mode, or class | operation | source.
const LD_W_ABS: u16 = 0x20;
const LD_H_ABS: u16 = 0x28;
const LD_B_ABS: u16 = 0x30;
const LD_H_IND: u16 = 0x48;
const LD_B_IND: u16 = 0x50;
const LD_W_LEN: u16 = 0x80;
const LDX_B_MSH: u16 = 0xb1;
const SUB_X: u16 = 0x1c;
const JA: u16 = 0x05;
const JEQ_K: u16 = 0x15;
const JGE_K: u16 = 0x35;
const JSET_K: u16 = 0x45;
const RET_K: u16 = 0x06;

/// One instruction as the kernel takes it (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// What is done.
    pub code: u16,
    /// How many instructions are left out where a comparison is true.
    pub yes: u8,
    /// How many instructions are left out where it is not.
    pub no: u8,
    /// The operand.
    pub operand: u32,
}

impl Instruction {
    /// The length of one in bytes.
    pub const LENGTH: usize = 8;

    /// Writes it in the machine's byte order.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let ([c0, c1], [k0, k1, k2, k3]) = (self.code.to_ne_bytes(), self.operand.to_ne_bytes());
        [c0, c1, self.yes, self.no, k0, k1, k2, k3]
    }

    /// Reads one that the kernel wrote.
    pub fn from_bytes([c0, c1, yes, no, k0, k1, k2, k3]: [u8; Self::LENGTH]) -> Self {
        let operand = u32::from_ne_bytes([k0, k1, k2, k3]);
        Self { code: u16::from_ne_bytes([c0, c1]), yes, no, operand }
    }
}

/// A place in a program that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// What is asked of the value that was loaded last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// It is this.
    Equal(u32),
    /// It is this or more.
    AtLeast(u32),
    /// It has one of these bits.
    AnyOf(u32),
}

/// An instruction whose targets may not be known yet; `None` is the next one.
#[derive(Debug, Clone, Copy)]
struct Draft {
    code: u16,
    operand: u32,
    yes: Option<Label>,
    no: Option<Label>,
}

/// A program that is being written, from its beginning to its end. It only jumps forward.
#[derive(Debug, Default)]
pub struct Assembler {
    drafts: Vec<Draft>,
    /// Where each label is, once it is placed.
    places: Vec<Option<usize>>,
}

impl Assembler {
    /// Returns a program of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a label that is placed later.
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Makes the next instruction the place of this label.
    pub fn place(&mut self, label: Label) -> &mut Self {
        if let Some(place) = self.places.get_mut(label.0) {
            *place = Some(self.drafts.len());
        }
        self
    }

    /// Loads four bytes, in network byte order.
    pub fn load_word(&mut self, offset: u32) -> &mut Self {
        self.plain(LD_W_ABS, offset)
    }

    /// Loads two bytes, in network byte order.
    pub fn load_half(&mut self, offset: u32) -> &mut Self {
        self.plain(LD_H_ABS, offset)
    }

    /// Loads one byte.
    pub fn load_byte(&mut self, offset: u32) -> &mut Self {
        self.plain(LD_B_ABS, offset)
    }

    /// Loads the packet's length in bytes.
    pub fn load_length(&mut self) -> &mut Self {
        self.plain(LD_W_LEN, 0)
    }

    /// Loads 1 for a packet with an 802.1Q tag, else 0.
    pub fn load_tagged(&mut self) -> &mut Self {
        self.plain(LD_B_ABS, ANCILLARY + VLAN_TAG_PRESENT)
    }

    /// Keeps the length in bytes of the IPv4 header that begins here, for [`Self::load_half_behind`] and others.
    pub fn keep_header_length(&mut self, offset: u32) -> &mut Self {
        self.plain(LDX_B_MSH, offset)
    }

    /// Loads two bytes at an offset to which the kept length is added.
    pub fn load_half_behind(&mut self, offset: u32) -> &mut Self {
        self.plain(LD_H_IND, offset)
    }

    /// Loads one byte at an offset to which the kept length is added.
    pub fn load_byte_behind(&mut self, offset: u32) -> &mut Self {
        self.plain(LD_B_IND, offset)
    }

    /// Takes the kept length from the loaded value.
    pub fn subtract_kept(&mut self) -> &mut Self {
        self.plain(SUB_X, 0)
    }

    /// Goes on at `yes` or at `no`; `None` is the next instruction.
    pub fn branch(&mut self, is: Is, yes: Option<Label>, no: Option<Label>) -> &mut Self {
        let (code, operand) = match is {
            Is::Equal(value) => (JEQ_K, value),
            Is::AtLeast(value) => (JGE_K, value),
            Is::AnyOf(bits) => (JSET_K, bits),
        };
        self.drafts.push(Draft { code, operand, yes, no });
        self
    }

    /// Goes on at a label.
    pub fn go_to(&mut self, label: Label) -> &mut Self {
        self.drafts.push(Draft { code: JA, operand: 0, yes: Some(label), no: None });
        self
    }

    /// Ends with this verdict.
    pub fn verdict(&mut self, verdict: u32) -> &mut Self {
        self.plain(RET_K, verdict)
    }

    /// Returns the program.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a branch is longer than 255 instructions, or one leads to a label that is nowhere or behind.
    pub fn finish(&self) -> Result<Vec<Instruction>> {
        let numbered = self.drafts.iter().enumerate();
        numbered
            .map(|(at, draft)| {
                let (yes, no) = (self.distance(at, draft.yes)?, self.distance(at, draft.no)?);
                if draft.code == JA {
                    return Ok(Instruction { code: JA, yes: 0, no: 0, operand: yes });
                }
                let short = |distance| u8::try_from(distance).map_err(|_too_far| no_jump(at));
                Ok(Instruction { code: draft.code, yes: short(yes)?, no: short(no)?, operand: draft.operand })
            })
            .collect()
    }

    fn distance(&self, from: usize, to: Option<Label>) -> Result<u32> {
        let Some(label) = to else { return Ok(0) };
        let place = self.places.get(label.0).copied().flatten().filter(|place| *place < self.drafts.len());
        let distance =
            place.and_then(|place| place.checked_sub(from + 1)).and_then(|d| u32::try_from(d).ok());
        distance.ok_or_else(|| no_jump(from))
    }

    fn plain(&mut self, code: u16, operand: u32) -> &mut Self {
        self.drafts.push(Draft { code, operand, yes: None, no: None });
        self
    }
}

fn no_jump(from: usize) -> Error {
    Error::Invalid { what: format!("packet filter: jump from instruction {from}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_their_labels() {
        let mut program = Assembler::new();
        let (drop, pass) = (program.label(), program.label());
        program.load_half(12).branch(Is::Equal(0x800), None, Some(drop));
        program.load_word(26).branch(Is::Equal(1), Some(pass), None);
        program.place(drop).verdict(2).place(pass).verdict(u32::MAX);
        let code = program.finish().unwrap();
        let jumps: Vec<_> = code.iter().map(|i| (i.code, i.yes, i.no)).collect();
        assert_eq!(
            jumps,
            [(LD_H_ABS, 0, 0), (JEQ_K, 0, 2), (LD_W_ABS, 0, 0), (JEQ_K, 1, 0), (RET_K, 0, 0), (RET_K, 0, 0)]
        );
        for instruction in code {
            assert_eq!(Instruction::from_bytes(instruction.to_bytes()), instruction);
        }
    }

    #[test]
    fn a_jump_to_nowhere_behind_or_too_far_is_refused() {
        let mut nowhere = Assembler::new();
        let label = nowhere.label();
        nowhere.branch(Is::Equal(0), Some(label), None).verdict(0);
        assert!(nowhere.finish().is_err());
        assert!(nowhere.place(label).finish().is_err(), "behind the last instruction");
        let mut behind = Assembler::new();
        let label = behind.label();
        behind.place(label).load_byte(0).branch(Is::AnyOf(1), Some(label), None).verdict(0);
        assert!(behind.finish().is_err());
        let mut far = Assembler::new();
        let label = far.label();
        far.branch(Is::AtLeast(0), Some(label), None);
        for _ in 0..256 {
            far.load_byte(0);
        }
        assert!(far.place(label).verdict(0).finish().is_err());
        let mut far = Assembler::new();
        let label = far.label();
        far.go_to(label);
        for _ in 0..256 {
            far.load_byte(0);
        }
        let code = far.place(label).verdict(0).finish().unwrap();
        assert_eq!(code[0], Instruction { code: JA, yes: 0, no: 0, operand: 256 });
    }
}
