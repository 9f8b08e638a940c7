//! The walk-through as a program reads it: what is typed, what is answered, and what is edited.

use std::fmt::Write;

/// One fenced block of the walk-through.
#[derive(Debug)]
pub(crate) enum Block {
    /// `sh`: what is typed.
    Typed(String),
    /// `text`: what it answers. A line `…` stands for lines that are left out.
    Answered(String),
    /// `diff`: what is edited in `keywheel.yaml`.
    Edited(String),
    /// `console`: what is typed somewhere else, before the rest.
    Elsewhere,
}

/// Reads the blocks of a text, in order.
pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for fenced in text.split("\n```").skip(1).step_by(2) {
        let (kind, inner) = fenced.split_once('\n').unwrap_or((fenced, ""));
        let inner = inner.lines().fold(String::new(), |text, line| text + line + "\n");
        match kind {
            "sh" => blocks.push(Block::Typed(inner)),
            "text" => blocks.push(Block::Answered(inner)),
            "diff" => blocks.push(Block::Edited(inner)),
            "console" => blocks.push(Block::Elsewhere),
            other => panic!("a block of the walk-through is neither typed nor answered: {other}"),
        }
    }
    blocks
}

/// Edits a text as a diff without line numbers shows: each run of lines stands in it once.
pub(crate) fn edited(text: &str, diff: &str) -> String {
    let mut text = text.to_owned();
    for hunk in diff.split("…\n") {
        let side = |sign: char| {
            let lines = hunk.lines().filter(|line| !line.starts_with(sign));
            lines.fold(String::new(), |mut all, line| {
                writeln!(all, "{}", line.get(1..).unwrap_or_default()).unwrap();
                all
            })
        };
        let (before, after) = (side('+'), side('-'));
        assert_eq!(text.matches(&before).count(), 1, "once in the file:\n{before}\n---\n{text}");
        text = text.replace(&before, &after);
    }
    text
}

/// Compares what was answered with what is printed, line by line; what differs from run to run looks alike. Lines that tell
/// how long something has taken so far come as they may.
#[track_caller]
pub(crate) fn compare(printed: &str, answered: &str) {
    let answered = answered.lines().filter(|line| !line.contains(" of at most "));
    let answered: Vec<String> = answered.map(plain).collect();
    let mut rest = answered.iter();
    let mut leaps = false;
    for line in printed.lines() {
        if line.trim() == "…" {
            leaps = true;
            continue;
        }
        let wanted = plain(line);
        let is_next = match leaps {
            true => rest.any(|line| *line == wanted),
            false => rest.next() == Some(&wanted),
        };
        assert!(is_next, "`{wanted}` is printed; answered was:\n{}", answered.join("\n"));
        leaps = false;
    }
    let left = if leaps { None } else { rest.next() };
    assert!(left.is_none(), "more was answered than is printed:\n{}", answered.join("\n"));
}

/// Takes out of a line what differs from run to run: numbers, hashes, ids, days, and how far columns are apart.
fn plain(line: &str) -> String {
    let words = line.split_whitespace().map(word);
    let mut words: Vec<String> = words.collect();
    words.dedup_by(|a, b| a == "#" && b == "#");
    // How long it took is told only where it took a while.
    words.join(" ").trim_end_matches(" #").to_owned()
}

fn word(word: &str) -> String {
    let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let months =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let units = ["ms", "s", "min", "h", "d", "days"];
    let bare = word.trim_end_matches([';', ',', ')', '.', ':']).trim_start_matches('(');
    let is_time = days.contains(&bare) || months.contains(&bare) || units.contains(&bare);
    let is_version = bare.len() == 2 && bare.starts_with('v');
    let is_hash = bare.len() == 6 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
    let has_digit = bare.bytes().any(|byte| byte.is_ascii_digit());
    let varies = (has_digit || is_hash) && !is_version;
    match is_time || varies {
        true => word.replace(bare, "#"),
        false => word.to_owned(),
    }
}
