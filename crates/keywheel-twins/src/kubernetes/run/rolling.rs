//! The arithmetic of a rolling update, apart from the objects that it counts: what the Deployment controller of Kubernetes
//! decides, in the same order, with the same rounding.

use serde_json::Value;

/// How far a rolling update may go above and below the wanted number of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) surge: usize,
    pub(super) unavailable: usize,
}

/// The pods of one template, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    /// How many are wanted.
    pub(super) wanted: usize,
    /// How many were ready for long enough.
    pub(super) available: usize,
}

impl Bounds {
    /// Reads both bounds, each a number or a share, 25 % where it is absent. A surge is rounded up, the other one down; where both
    /// come out as nothing, one replica may be unavailable, since nothing could move else.
    pub(super) fn of(strategy: &Value, replicas: usize) -> Self {
        let surge = share(&strategy["maxSurge"], replicas, usize::div_ceil);
        let unavailable = share(&strategy["maxUnavailable"], replicas, |part, whole| part / whole);
        if surge == 0 && unavailable == 0 {
            return Self { surge, unavailable: 1 };
        }
        Self { surge, unavailable: unavailable.min(replicas) }
    }
}

/// Reads a number, or a share of all replicas with its own rounding.
pub(super) fn share(
    written: &Value,
    replicas: usize,
    rounded: impl Fn(usize, usize) -> usize,
) -> usize {
    if let Some(number) = written.as_u64() {
        return usize::try_from(number).unwrap_or(usize::MAX);
    }
    let percent = written.as_str().unwrap_or("25%").trim_end_matches('%').parse().unwrap_or(0);
    rounded(replicas * percent, 100)
}

/// Returns how many pods of the new template are wanted next.
pub(super) fn grown(replicas: usize, bounds: Bounds, new: Tally, old: &[Tally]) -> usize {
    if new.wanted >= replicas {
        return replicas;
    }
    let all = new.wanted + old.iter().map(|old| old.wanted).sum::<usize>();
    let room = (replicas + bounds.surge).saturating_sub(all);
    new.wanted + room.min(replicas - new.wanted)
}

/// Returns how many pods of each old template are wanted next; the templates are given from the oldest.
pub(super) fn shrunk(replicas: usize, bounds: Bounds, new: Tally, old: &[Tally]) -> Vec<usize> {
    let mut wanted: Vec<usize> = old.iter().map(|old| old.wanted).collect();
    let all = new.wanted + wanted.iter().sum::<usize>();
    let least = replicas.saturating_sub(bounds.unavailable);
    let new_unavailable = new.wanted.saturating_sub(new.available);
    let mut spare = all.saturating_sub(least + new_unavailable);
    if spare == 0 {
        return wanted;
    }
    // Pods that do not work anyway go first.
    for (wanted, old) in wanted.iter_mut().zip(old) {
        let broken = wanted.saturating_sub(old.available).min(spare);
        *wanted -= broken;
        spare -= broken;
    }
    let available = new.available + old.iter().map(|old| old.available).sum::<usize>();
    let mut surplus = available.saturating_sub(least);
    for wanted in &mut wanted {
        let taken = (*wanted).min(surplus);
        *wanted -= taken;
        surplus -= taken;
    }
    wanted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tally(wanted: usize, available: usize) -> Tally {
        Tally { wanted, available }
    }

    #[test]
    fn a_surge_is_rounded_up_and_the_other_bound_down() {
        let bounds = |strategy, replicas| {
            let bounds = Bounds::of(&strategy, replicas);
            (bounds.surge, bounds.unavailable)
        };
        assert_eq!(bounds(json!({}), 3), (1, 0));
        assert_eq!(bounds(json!({}), 10), (3, 2));
        assert_eq!(bounds(json!({ "maxSurge": 0, "maxUnavailable": "10%" }), 3), (0, 1));
        assert_eq!(bounds(json!({ "maxSurge": "100%", "maxUnavailable": 0 }), 3), (3, 0));
        assert_eq!(bounds(json!({ "maxSurge": 0, "maxUnavailable": "100%" }), 4), (0, 4));
    }

    #[test]
    fn one_replica_more_comes_before_one_goes() {
        let bounds = Bounds { surge: 1, unavailable: 0 };
        assert_eq!(grown(3, bounds, tally(0, 0), &[tally(3, 3)]), 1);
        assert_eq!(shrunk(3, bounds, tally(1, 0), &[tally(3, 3)]), [3]);
        assert_eq!(shrunk(3, bounds, tally(1, 1), &[tally(3, 3)]), [2]);
        assert_eq!(grown(3, bounds, tally(1, 1), &[tally(2, 2)]), 2);
    }

    #[test]
    fn pods_that_do_not_work_go_first() {
        let bounds = Bounds { surge: 1, unavailable: 1 };
        let old = [tally(1, 0), tally(3, 3)];
        assert_eq!(shrunk(3, bounds, tally(1, 0), &old), [0, 2]);
        let bounds = Bounds { surge: 1, unavailable: 0 };
        assert_eq!(shrunk(3, bounds, tally(0, 0), &old), [0, 3]);
    }

    #[test]
    fn a_new_template_that_never_works_stops_the_update() {
        let bounds = Bounds { surge: 1, unavailable: 0 };
        let (new, old) = (tally(1, 0), [tally(3, 3)]);
        assert_eq!(grown(3, bounds, new, &old), 1);
        assert_eq!(shrunk(3, bounds, new, &old), [3]);
    }

    #[test]
    fn the_way_back_ends_the_broken_pods_and_leaves_the_others() {
        let bounds = Bounds { surge: 1, unavailable: 0 };
        let (new, old) = (tally(3, 3), [tally(1, 0)]);
        assert_eq!(grown(3, bounds, new, &old), 3);
        assert_eq!(shrunk(3, bounds, new, &old), [0]);
    }

    #[test]
    fn every_update_ends_within_its_bounds() {
        for (replicas, surge, unavailable) in
            [(1, 1, 0), (3, 1, 0), (3, 0, 1), (4, 2, 1), (10, 3, 2)]
        {
            let bounds = Bounds { surge, unavailable };
            let (mut new, mut old) = (tally(0, 0), tally(replicas, replicas));
            for _ in 0..50 {
                new.wanted = grown(replicas, bounds, new, &[old]);
                old.wanted = shrunk(replicas, bounds, new, &[old])[0];
                old.available = old.available.min(old.wanted);
                assert!(new.wanted + old.wanted <= replicas + surge);
                assert!(new.available + old.available + unavailable >= replicas);
                new.available = (new.available + 1).min(new.wanted);
            }
            assert_eq!((new, old), (tally(replicas, replicas), tally(0, 0)));
        }
    }
}
