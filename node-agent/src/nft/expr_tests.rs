use proptest::prelude::*;

use super::*;
use crate::{
    model::Family,
    nft::{
        elements::{self, RawElement},
        objects::{Chain, Set, Table},
        rule::{Field, Rule},
    },
};

/// The attributes of the rule message that nft 1.0.6 sends for
/// `ip daddr . meta l4proto . th dport @s meta mark set meta mark or 0x1000 accept comment "web"`
/// in chain `c` of table `inet t`.
#[rustfmt::skip]
const CAPTURED: &[u8] = &[
    6, 0, 1, 0, b't', 0, 0, 0,                                  // table
    6, 0, 2, 0, b'c', 0, 0, 0,                                  // chain
    0xd0, 1, 4, 0x80,                                           // expressions
    0x24, 0, 1, 0x80, 9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0,
    0x14, 0, 2, 0x80, 8, 0, 2, 0, 0, 0, 0, 15,                  // nfproto
    8, 0, 1, 0, 0, 0, 0, 1,                                     // into register 1
    0x2c, 0, 1, 0x80, 8, 0, 1, 0, b'c', b'm', b'p', 0,
    0x20, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1,                   // register 1
    8, 0, 2, 0, 0, 0, 0, 0,                                     // equals
    12, 0, 3, 0x80, 5, 0, 1, 0, 2, 0, 0, 0,                     // IPv4
    0x34, 0, 1, 0x80, 12, 0, 1, 0, b'p', b'a', b'y', b'l', b'o', b'a', b'd', 0,
    0x24, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1,                   // into register 1
    8, 0, 2, 0, 0, 0, 0, 1, 8, 0, 3, 0, 0, 0, 0, 16, 8, 0, 4, 0, 0, 0, 0, 4, // network header + 16, 4 bytes
    0x24, 0, 1, 0x80, 9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0,
    0x14, 0, 2, 0x80, 8, 0, 2, 0, 0, 0, 0, 16,                  // l4proto
    8, 0, 1, 0, 0, 0, 0, 9,                                     // into the second word
    0x34, 0, 1, 0x80, 12, 0, 1, 0, b'p', b'a', b'y', b'l', b'o', b'a', b'd', 0,
    0x24, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 10,                  // into the third word
    8, 0, 2, 0, 0, 0, 0, 2, 8, 0, 3, 0, 0, 0, 0, 2, 8, 0, 4, 0, 0, 0, 0, 2, // transport header + 2, 2 bytes
    0x2c, 0, 1, 0x80, 11, 0, 1, 0, b'l', b'o', b'o', b'k', b'u', b'p', 0, 0,
    0x1c, 0, 2, 0x80, 8, 0, 2, 0, 0, 0, 0, 1,                   // key from register 1
    6, 0, 1, 0, b's', 0, 0, 0, 8, 0, 4, 0, 0, 0, 0, 1,          // set s, id 1 of the transaction
    0x24, 0, 1, 0x80, 9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0,
    0x14, 0, 2, 0x80, 8, 0, 2, 0, 0, 0, 0, 3,                   // mark
    8, 0, 1, 0, 0, 0, 0, 1,
    0x4c, 0, 1, 0x80, 12, 0, 1, 0, b'b', b'i', b't', b'w', b'i', b's', b'e', 0,
    0x3c, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 1, // from and to register 1
    8, 0, 6, 0, 0, 0, 0, 0, 8, 0, 3, 0, 0, 0, 0, 4,             // mask and xor, 4 bytes
    12, 0, 4, 0x80, 8, 0, 1, 0, 0xff, 0xef, 0xff, 0xff,         // & ~0x1000
    12, 0, 5, 0x80, 8, 0, 1, 0, 0, 0x10, 0, 0,                  // ^ 0x1000
    0x24, 0, 1, 0x80, 9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0,
    0x14, 0, 2, 0x80, 8, 0, 2, 0, 0, 0, 0, 3,                   // mark
    8, 0, 3, 0, 0, 0, 0, 1,                                     // out of register 1
    0x30, 0, 1, 0x80, 14, 0, 1, 0, b'i', b'm', b'm', b'e', b'd', b'i', b'a', b't', b'e', 0, 0, 0,
    0x1c, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 0,                   // verdict register
    0x10, 0, 2, 0x80, 12, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1,   // accept
    10, 0, 7, 0, 0, 4, b'w', b'e', b'b', 0, 0, 0,               // comment
];

fn written(rule: &Rule) -> Vec<u8> {
    let mut buf = Vec::new();
    rule.encode(&mut AttrWriter::new(&mut buf), "t", "c");
    buf
}

#[test]
#[cfg(target_endian = "little")]
fn what_nft_writes_is_what_our_sentence_says() {
    let fields = [Field::Destination(Family::V4), Field::Protocol, Field::DestinationPort];
    let sentence = Rule::new("web").family(Family::V4).found_in(&fields, "s").add_mark(0x1000).accept();
    let (chain, rule) = Rule::decode(&Attrs::new(CAPTURED)).unwrap();
    assert_eq!(chain, "c");
    assert_eq!(rule, sentence);
}

#[test]
fn every_expression_reads_back_as_written() {
    let v6 = [Field::Source(Family::V6), Field::Destination(Family::V6)];
    let rules = [
        Rule::new("a").family(Family::V6).found_in(&v6, "pairs").masquerade(),
        Rule::new("b").ct_state(8).ct_reply().ct_translated().ct_label(101).add_ct_label(101),
        Rule::new("c").mark_lacks(1).mark_has(2).clear_mark(4).write_mark(8).write_mark_from(&v6, "m"),
        Rule::new("d").not_in(&v6, "s").to_foreign_address().to_own_address().routed_out().protocol(6),
        Rule::new("e").tcp_flags(2).tcp_flags_lack(2).clamp_mss().counter().reset(),
        Rule::new("f").reject().discard(),
        Rule::new("g").jump("elsewhere"),
        Rule { exprs: vec![Expr::Verdict(Verdict::Return)], comment: None },
    ];
    for rule in rules {
        assert_eq!(Rule::decode(&Attrs::new(&written(&rule))), Some(("c".to_owned(), rule)));
    }
}

#[test]
fn registers_have_the_numbers_by_which_the_kernel_dumps_them() {
    let numbers = [(0, 1), (1, 9), (2, 10), (4, 2), (5, 13), (8, 3), (12, 4), (15, 23)];
    for (word, number) in numbers {
        assert_eq!(Reg(word).number(), number);
        assert_eq!(Reg::from_number(number), Some(Reg(word)));
    }
    // 8 and 1 are the same register
    assert_eq!(Reg::from_number(8), Some(Reg(0)));
    assert_eq!(Reg::from_number(0), None);
    assert_eq!(Reg::from_number(24), None);
}

#[test]
fn an_unknown_expression_keeps_its_name_and_equals_none_of_ours() {
    let rule = Rule { exprs: vec![Expr::Other("synproxy".to_owned())], comment: None };
    let (_, read) = Rule::decode(&Attrs::new(&written(&rule))).unwrap();
    assert_eq!(read.exprs, [Expr::Other("synproxy".to_owned())]);
    // a known name with nothing behind it
    let rule = Rule { exprs: vec![Expr::Other("lookup".to_owned())], comment: None };
    let (_, read) = Rule::decode(&Attrs::new(&written(&rule))).unwrap();
    assert_eq!(read.exprs, [Expr::Other("lookup".to_owned())]);
}

/// Reads bytes as every kind of answer.
fn read_as_anything(bytes: &[u8]) {
    let attrs = Attrs::new(bytes);
    let _ = Rule::decode(&attrs);
    let _ = Set::decode(&attrs);
    let _ = Chain::decode(1, &attrs);
    let _ = Table::decode(1, &attrs);
    let _ = elements::in_answer(&attrs).filter_map(RawElement::decode).count();
}

proptest! {
    #[test]
    fn random_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        read_as_anything(&bytes);
    }

    #[test]
    fn damaged_answers_are_read_without_panic(
        damage in proptest::collection::vec((0..CAPTURED.len(), any::<u8>()), 1..8),
        length in 0..CAPTURED.len(),
    ) {
        let mut bytes = CAPTURED.to_vec();
        for (at, value) in damage {
            bytes[at] = value;
        }
        read_as_anything(&bytes);
        read_as_anything(&bytes[..length]);
    }
}
