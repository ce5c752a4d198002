//! A process that trains, killed again and again: the bits in the end are those of one that was never disturbed.
//!
//! The child is this test's own program, which runs [`child`] alone. When it is killed follows from a printed seed and from how fast the machine is; what
//! is asserted is only what it leaves behind.

use std::{
    env,
    io::{BufRead, BufReader, Lines},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use paris_model::{random::Stream, snapshot::Snapshots};

use super::part::{PART, Pictures, begin, step};

/// Kills over all runs.
const KILLS: usize = 200;
/// Steps of a run.
const STEPS: u64 = 60;
/// Steps between two snapshots, so that one is being written most of the time.
const SNAPSHOT_STEPS: u64 = 3;
/// The longest a child trains before it is killed, microseconds.
const PATIENCE_US: usize = 40_000;
/// Names the folder to the child.
const FOLDER: &str = "PARIS_TEST_SNAPSHOTS";
/// What the child's lines begin with, among those of the test harness.
const BEGAN: &str = "began at step ";
const ENDED: &str = "ended with ";

/// Trains to the end, from wherever the last process came to.
#[test]
#[ignore = "the child process of the test below"]
fn child() {
    let Ok(folder) = env::var(FOLDER) else { return };
    let data = Pictures::default();
    let mut durable = begin(&Snapshots::new(Path::new(&folder), PART), None);
    println!("\n{BEGAN}{}", durable.trainer().step_count());
    while durable.trainer().step_count() < STEPS {
        let report = step(&mut durable, &data);
        if report.step.is_multiple_of(SNAPSHOT_STEPS) {
            durable.snapshot().unwrap();
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

/// What a child says, line by line, as long as it lives.
struct Says(Lines<BufReader<ChildStdout>>);

impl Says {
    fn of(child: &mut Child) -> Self {
        Self(BufReader::new(child.stdout.take().unwrap()).lines())
    }

    /// What follows `start` in the next line that begins so; none if the child dies before.
    fn after(&mut self, start: &str) -> Option<String> {
        self.0.by_ref().map_while(Result::ok).find_map(|line| line.strip_prefix(start).map(str::to_owned))
    }
}

#[test]
fn two_hundred_kills_leave_no_trace_in_the_bits() {
    let undisturbed = tempfile::tempdir().unwrap();
    let mut child = start(undisturbed.path());
    let expected = Says::of(&mut child).after(ENDED).expect("the undisturbed child ends");
    child.wait().unwrap();
    let seed = 20_261_124;
    let mut moments = Stream::seeded(seed, "kills");
    let (mut kills, mut during_writing, mut runs) = (0, 0, 0);
    while kills < KILLS {
        runs += 1;
        let folder = tempfile::tempdir().unwrap();
        let mut reached = 0;
        loop {
            let mut child = start(folder.path());
            let mut says = Says::of(&mut child);
            let disturbed = kills < KILLS;
            // Most are killed some time after they have begun to train, some while they start.
            if moments.below(4) > 0 || !disturbed {
                let began = says.after(BEGAN).expect("it begins").parse().unwrap();
                assert!(began >= reached, "seed {seed}, kill {kills}: went on at {began} after {reached}");
                reached = began;
            }
            if disturbed {
                thread::sleep(Duration::from_micros(moments.below(PATIENCE_US) as u64));
                // One that has ended already is no kill.
                if child.try_wait().unwrap().is_none() {
                    child.kill().unwrap();
                    kills += 1;
                }
            }
            let ended = says.after(ENDED);
            child.wait().unwrap();
            during_writing += usize::from(folder.path().join(format!("{PART}.writing")).exists());
            if let Some(ended) = ended {
                assert_eq!(ended, expected, "seed {seed}, kill {kills}");
                break;
            }
            assert!(disturbed, "seed {seed}: a child that was left alone failed; run it by hand with {FOLDER} set");
        }
    }
    println!("seed {seed}: {kills} kills in {runs} runs, {during_writing} while a snapshot was being written");
}
