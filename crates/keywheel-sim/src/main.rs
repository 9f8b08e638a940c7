//! `keywheel-sim`: leads lives, counts them, and shows the seed of one in which an invariant did not hold.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints")]

fn main() {
    if std::env::args().nth(1).as_deref() == Some("--planted") {
        for bug in &keywheel_sim::planted::BUGS {
            let t = std::time::Instant::now();
            let found = keywheel_sim::planted::hunt(bug, 20_000);
            println!("{:<40} {:>8.1?} {:?}", bug.name, t.elapsed(), found.map(|(s, w)| (s, w.chars().take(110).collect::<String>())));
        }
        return;
    }
    let seed: Option<u64> = std::env::args().nth(2).and_then(|seed| seed.parse().ok());
    if let Some(seed) = seed {
        let verdict = keywheel_sim::live(seed, true);
        eprintln!("{:?} {:?} {:?}", verdict.violation, verdict.fired, verdict.outcomes);
        return;
    }
    let begun = std::time::Instant::now();
    let mut by: std::collections::BTreeMap<String, (u64, u64)> = Default::default();
    let n: u64 = std::env::var("N").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    for seed in 0..n {
        if std::env::var("V").is_ok() { eprintln!("{seed}"); }
        let t = std::time::Instant::now();
        let verdict = keywheel_sim::live(seed, false);
        if t.elapsed().as_millis() > 300 { eprintln!("slow {seed} {:?}", t.elapsed()); }
        if let Some(violation) = verdict.violation {
            let text: String = format!("{} {}", violation.id, violation.what).chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
            let entry = by.entry(text).or_insert((0, seed));
            entry.0 += 1;
        }
    }
    for (text, (count, seed)) in &by {
        println!("{count:>6} seed {seed}: {text}");
    }
    println!("{n} in {:?}", begun.elapsed());
}
