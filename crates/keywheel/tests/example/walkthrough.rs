//! The walk-through of the example: what is typed is run as printed, in a copy of the folder, and answers as printed.

use super::readme::{Block, blocks, compare, edited};
use super::shop::Shop;

#[test]
fn the_walk_through_is_true() {
    let Some(mut shop) = Shop::copy() else { return };
    let printed = shop.with_ports(include_str!("../../../../examples/compose/README.md"));
    let mut answered = None;
    for block in blocks(&printed) {
        match block {
            Block::Typed(typed) => {
                let ran = shop.sh(&typed);
                let ends = typed.split_once("# ends with ").map_or("0", |(_, code)| code.trim());
                assert_eq!(ran.code.to_string(), ends, "{typed}:\n{}", ran.said);
                answered = Some(ran.said);
            }
            Block::Answered(printed) => {
                compare(&printed, &answered.take().expect("something is typed before"));
            }
            Block::Elsewhere => panic!("everything is typed in this walk-through"),
            Block::Edited(diff) => shop.edit("keywheel.yaml", |text| edited(&text, &diff)),
        }
    }
}
