//! A process that trains, killed again and again: the bits in the end are those of one that was never disturbed.
//!
//! The child is this test's own program, which runs [`child`] alone. When it is killed follows from a printed seed and from how fast the machine is; what
//! is asserted is only what it leaves behind.

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use paris_model::{random::Stream, snapshot::Snapshots};

use super::part::{PART, Pictures, begin, step};

/// Kills over all runs.
const KILLS: usize = 200;
/// Steps of a run.
const STEPS: u64 = 200;
/// Steps between two snapshots, so that one is being written most of the time.
const SNAPSHOT_STEPS: u64 = 3;
/// The most snapshots that a child writes before it is killed.
const SNAPSHOTS_MAX: usize = 4;
/// The longest it is left alone after that, microseconds.
const PATIENCE_US: usize = 20_000;
/// Names the folder to the child.
const FOLDER: &str = "PARIS_TEST_SNAPSHOTS";
/// What the child's lines begin with, among those of the test harness.
const BEGAN: &str = "began at step ";
const WROTE: &str = "wrote step ";
const ENDED: &str = "ended with ";

/// Trains to the end, from wherever the last process came to.
#[test]
#[ignore = "the child process of the test below"]
fn child() {
    let Ok(folder) = env::var(FOLDER) else { return };
    let data = Pictures::default();
    let mut durable = begin(&Snapshots::new(Path::new(&folder), PART), None);
    println!("\n{BEGAN}{}", durable.trainer().step_count());
    let mut written = None;
    while durable.trainer().step_count() < STEPS {
        let report = step(&mut durable, &data);
        if report.step.is_multiple_of(SNAPSHOT_STEPS) {
            durable.snapshot().unwrap();
        }
        let last = durable.last_snapshot().map(|snapshot| snapshot.step);
        if last != written {
            written = last;
            println!("{WROTE}{}", last.unwrap());
        }
    }
    let state = durable.trainer().state().unwrap();
    println!("\n{ENDED}{}", blake3::hash(&state));
}

fn start(folder: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--ignored", "--nocapture", "--test-threads", "1"])
        .env(FOLDER, folder)
        .env("RAYON_NUM_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What a child says.
enum Said {
    Began(u64),
    Wrote,
    Ended(String),
}

/// What it says, as long as it lives.
fn says(child: &mut Child) -> impl Iterator<Item = Said> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.filter_map(|line| {
        let began = line.strip_prefix(BEGAN).and_then(|step| step.parse().ok()).map(Said::Began);
        let ended = line.strip_prefix(ENDED).map(|hash| Said::Ended(hash.to_owned()));
        began.or(ended).or(line.starts_with(WROTE).then_some(Said::Wrote))
    })
}

#[test]
fn two_hundred_kills_leave_no_trace_in_the_bits() {
    let undisturbed = tempfile::tempdir().unwrap();
    let mut child = start(undisturbed.path());
    let Some(Said::Ended(expected)) = says(&mut child).last() else { panic!("the undisturbed child ends") };
    child.wait().unwrap();
    let seed = 20_261_124;
    let mut moments = Stream::seeded(seed, "kills");
    let (mut kills, mut during_writing, mut runs) = (0, 0, 0);
    while kills < KILLS {
        runs += 1;
        let folder = tempfile::tempdir().unwrap();
        let (mut reached, mut ended) = (0, None);
        while ended.is_none() {
            let number = kills;
            let mut child = start(folder.path());
            let disturbed = kills < KILLS;
            // How often it is heard before its time comes: not at all, when it has begun, or after some snapshots.
            let mut patience = if disturbed { moments.below(SNAPSHOTS_MAX + 2) } else { usize::MAX };
            let delay = Duration::from_micros(moments.below(PATIENCE_US) as u64);
            let mut said = says(&mut child);
            let mut hear = |said| match said {
                Said::Began(step) => {
                    assert!(step >= reached, "seed {seed}, kill {number}: went on at {step} after {reached}");
                    reached = step;
                }
                Said::Wrote => {}
                Said::Ended(hash) => ended = Some(hash),
            };
            while patience > 0
                && let Some(said) = said.next()
            {
                patience -= 1;
                hear(said);
            }
            if disturbed {
                thread::sleep(delay);
                // One that has ended already is no kill.
                if child.try_wait().unwrap().is_none() {
                    child.kill().unwrap();
                    kills += 1;
                }
            }
            said.for_each(hear);
            child.wait().unwrap();
            during_writing += usize::from(folder.path().join(format!("{PART}.writing")).exists());
            assert!(
                disturbed || ended.is_some(),
                "seed {seed}: a child that was left alone failed; run it by hand with {FOLDER} set"
            );
        }
        assert_eq!(ended.as_ref(), Some(&expected), "seed {seed}, kill {kills}");
    }
    println!("seed {seed}: {kills} kills in {runs} runs, {during_writing} while a snapshot was being written");
    assert!(runs > 1, "the runs are short enough for several of them to reach their end");
}
