//! A state machine: random sequences of commands, downloads, deletions, corruption, kills and clock steps on two machines
//! and one bucket. The real binary runs against the embedded server, and each step is compared with a small [`reference`] of
//! what must and what may exist afterwards.
//!
//! A failure prints its seed and the shortest sequence that still fails. See CONTRIBUTING.md for longer runs.

mod reference;
mod state;
mod step;
mod world;

use std::collections::BTreeSet;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use state::{Fact, State, Universe};
use step::Step;
use world::World;

/// Number of sequences that `cargo test` runs.
const CASES: u32 = 70;
/// Maximum number of steps in a sequence.
const STEPS: usize = 16;

/// Returns the number in an environment variable.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is '{text}', not a number")))
}

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

#[test]
fn any_sequence_of_commands_leaves_what_the_reference_allows() {
    let cases = number("HF_CACHE_SYNC_MODEL_CASES").map_or(CASES, |cases| cases as u32);
    let seed = number("HF_CACHE_SYNC_MODEL_SEED").unwrap_or_else(|| fastrand::u64(..));
    let universe = Universe::new();
    let world = World::new(&universe);
    for seed in (0..u64::from(cases)).map(|case| seed.wrapping_add(case)) {
        let mut runner = runner(seed);
        let tree = step::sequence(STEPS).new_tree(&mut runner).unwrap();
        let run = |steps: Vec<Step>| {
            play(&universe, &world, &steps).map_err(|(number, why)| {
                let steps: Vec<String> = steps[..=number].iter().map(|step| format!("  {step:?}")).collect();
                TestCaseError::fail(format!("{}\n{why}", steps.join("\n")))
            })
        };
        match runner.run_one(tree, run) {
            Ok(_) => {}
            Err(TestError::Fail(why, _)) => {
                panic!("HF_CACHE_SYNC_MODEL_SEED={seed} HF_CACHE_SYNC_MODEL_CASES=1 repeats it:\n{why}")
            }
            Err(TestError::Abort(why)) => panic!("seed {seed}: {why}"),
        }
    }
}

/// Plays a sequence from the beginning.
///
/// # Errors
/// The number of the first step that leaves anything the reference does not allow, and the difference.
fn play(universe: &Universe, world: &World<'_>, steps: &[Step]) -> Result<(), (usize, String)> {
    world.reset();
    let mut before = State::observe(universe, world);
    for (number, step) in steps.iter().enumerate() {
        let failed = |why: String| (number, why);
        let ran = world.apply(step);
        let after = State::observe(universe, world);
        if let Some(ran) = &ran {
            check(universe, &before, step, ran, &after).map_err(failed)?;
        }
        before = after;
    }
    Ok(())
}

/// Compares the state after a command with the reference.
fn check(universe: &Universe, before: &State, step: &Step, ran: &world::Ran, after: &State) -> Result<(), String> {
    let allowed = reference::after(universe, before, step, ran.was_killed);
    let mut wrong = Vec::new();
    let mut note = |word: &str, facts: Vec<&Fact>| wrong.extend(facts.iter().map(|fact| format!("{word} {fact:?}")));
    note("lost:", allowed.must.difference(&after.facts).collect());
    note("not allowed:", after.facts.difference(&allowed.may).collect());
    if let Some((machine, most)) = allowed.size {
        let sizes = after.inodes.iter().filter(|((m, _, _), _)| *m == machine).map(|(_, inode)| *inode);
        let size: u64 = sizes.collect::<BTreeSet<_>>().into_iter().map(|(_, size)| size).sum();
        if size > most {
            wrong.push(format!("{size} bytes are left, and not {most}"));
        }
    }
    for (machine, bytes) in &before.quarantine {
        if !after.quarantine.contains(&(*machine, bytes.clone())) {
            wrong.push(format!("lost from the quarantine of {machine}: {bytes:?}"));
        }
    }
    if matches!(step, Step::Repair { .. }) {
        for bad in &before.bad_bytes {
            if !after.bad_bytes.contains(bad) && !after.quarantine.contains(bad) {
                wrong.push(format!("neither in its place nor in the quarantine: {bad:?}"));
            }
        }
    }
    if !ran.was_killed {
        wrong.extend(after.leftovers.difference(&before.leftovers).map(|left| format!("left behind: {left:?}")));
    }
    let (old, new) = (before.violations(universe), after.violations(universe));
    wrong.extend(new.difference(&old).map(|violation| format!("new violation: {violation}")));
    if !ran.was_killed && !allowed.codes.contains(&ran.code) {
        wrong.push(format!("exit code {}, not one of {:?}", ran.code, allowed.codes));
    }
    if ran.text.contains("panicked") || ran.code == 70 {
        wrong.push("a panic".into());
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(format!("\n  {}\n{}\nbefore: {:#?}", wrong.join("\n  "), ran.text, before.facts)),
    }
}

/// A comparison that finds nothing would prove nothing.
#[test]
fn the_comparison_detects_a_difference() {
    let universe = Universe::new();
    let world = World::new(&universe);
    world.reset();
    let download = Step::Download { machine: 0, revision: 0, files: 7, reference: Some(0), tree: false };
    assert!(world.apply(&download).is_none());
    let before = State::observe(&universe, &world);
    assert!(before.facts.len() > 4, "{before:?}");
    let push = Step::Push { machine: 0, clock: step::Clock::Right, kill: None };
    let ran = world.apply(&push).unwrap();
    let after = State::observe(&universe, &world);
    check(&universe, &before, &push, &ran, &after).unwrap();
    for lost in &after.facts {
        let mut less = after.clone();
        less.facts.remove(lost);
        assert!(check(&universe, &before, &push, &ran, &less).is_err(), "{lost:?} is missing");
    }
    let mut more = after.clone();
    more.facts.insert(Fact::Odd { place: "somewhere".into() });
    assert!(check(&universe, &before, &push, &ran, &more).is_err());
}
