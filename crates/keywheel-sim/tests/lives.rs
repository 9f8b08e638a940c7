//! Lives led in every test run: the ones that failed once, and one for each pair of step and fault.

use keywheel_sim::faults::{self, Hit};
use keywheel_sim::walk;

#[test]
fn lives_that_failed_once_hold() {
    for line in include_str!("../regressions.txt").lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let verdict = match words.as_slice() {
            [kind, seed] if kind == "seed" => keywheel_sim::live(seed.parse().unwrap(), false),
            [kind, shape, faults @ ..] if kind == "again" => {
                walk::again(shape, faults, false).unwrap()
            }
            _ => panic!("`{line}` is no life"),
        };
        assert_eq!(verdict.violation, None, "{line}");
    }
}

#[test]
fn every_pair_of_step_and_fault_that_can_happen_happens() {
    let mut hit = Hit::default();
    for (step, fault) in faults::pairs() {
        for seed in 0..200 {
            if hit.has(step, fault) {
                break;
            }
            let verdict = keywheel_sim::live_with(seed, (step, fault));
            assert_eq!(verdict.violation, None, "{step:?} with {fault:?}, seed {seed}");
            hit.merge(&verdict.hit);
        }
    }
    assert_eq!(hit.missing(), []);
}

#[test]
fn random_lives_violate_nothing_and_come_to_all_ends() {
    use keywheel_core::event::Outcome;
    let (mut completed, mut undone, mut waiting) = (0, 0, 0);
    for seed in 50_000..51_000 {
        let verdict = keywheel_sim::live(seed, false);
        assert_eq!(verdict.violation, None, "cargo run --release -p keywheel-sim -- --seed {seed}");
        for outcome in verdict.outcomes {
            match outcome {
                Some(Outcome::Completed) => completed += 1,
                Some(Outcome::Undone) => undone += 1,
                Some(Outcome::Superseded) | None => waiting += 1,
            }
        }
    }
    assert!(completed > undone && undone > 50, "{completed} completed, {undone} undone");
    assert!(waiting < 100, "{waiting} wait for an operator");
}

#[test]
fn the_same_seed_leads_the_same_life() {
    for seed in [3, 14, 15] {
        let (one, other) = (keywheel_sim::live(seed, false), keywheel_sim::live(seed, false));
        assert_eq!(
            (one.fired, one.outcomes, one.checks),
            (other.fired, other.outcomes, other.checks)
        );
    }
}
