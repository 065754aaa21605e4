//! The task that logs what becomes wrong and what is right again: whatever `status` lists, from whichever task it
//! comes.

use std::collections::BTreeMap;
use std::time::Duration;

use flatnet_core::problem::{Problem, ProblemCode};
use futures::future::select_all;
use tokio::time::{Instant, sleep};

use crate::node::status::StatusSource;
use crate::wiring::part::Changed;

/// The interval of looks when nobody wakes the task: some problems come with time alone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The time that a problem must be away to be over: one that comes and goes with every pass is one problem.
const OVER_AFTER: Duration = Duration::from_secs(2);
/// The time that states every start passes through may last before they are logged. A healthy store answers and
/// confirms in milliseconds.
const STARTING_LOGGED_AFTER: Duration = Duration::from_secs(2);

/// A line to be logged after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Appeared(Problem),
    Over(Problem),
}

/// The identity of a problem: its code, its object, and its message without numbers, which may keep counting.
type Key = (ProblemCode, String, String);

/// The problems known so far.
#[derive(Debug, Default)]
struct ProblemLog(BTreeMap<Key, Known>);

#[derive(Debug)]
struct Known {
    problem: Problem,
    since: Instant,
    seen: Instant,
    said: bool,
}

impl ProblemLog {
    /// Returns what is to be logged, given that `problems` exist at `now`.
    fn look(&mut self, problems: &[Problem], now: Instant) -> Vec<Line> {
        let mut lines = Vec::new();
        // The task that finds who claims to be whom logs that itself, so that made-up sources do not fill the log.
        for problem in problems.iter().filter(|problem| problem.code != ProblemCode::SourceMismatch) {
            let new = || Known { problem: problem.clone(), since: now, seen: now, said: false };
            let known = self.0.entry(key(problem)).or_insert_with(new);
            known.seen = now;
            if !known.said && now.duration_since(known.since) >= patience(problem.code) {
                known.said = true;
                lines.push(Line::Appeared(problem.clone()));
            }
        }
        self.0.retain(|_, known| {
            let over = now.duration_since(known.seen) >= if known.said { OVER_AFTER } else { Duration::ZERO }
                && known.seen != now;
            if over && known.said {
                lines.push(Line::Over(known.problem.clone()));
            }
            !over
        });
        lines
    }
}

fn key(problem: &Problem) -> Key {
    let without_numbers = problem.message.chars().filter(|character| !character.is_ascii_digit()).collect();
    (problem.code, problem.object.clone(), without_numbers)
}

fn patience(code: ProblemCode) -> Duration {
    match code {
        ProblemCode::StoreConnecting | ProblemCode::LeaseUnconfirmed => STARTING_LOGGED_AFTER,
        _ => Duration::ZERO,
    }
}

/// Logs problems as they come and go, for ever.
pub async fn keep(status: StatusSource) {
    let mut log = ProblemLog::default();
    let (mut sources, mut parts) = status.reports.changes();
    loop {
        for line in log.look(&status.problems(), Instant::now()) {
            say(&line);
        }
        tokio::select! {
            is_there = parts.changed() => {
                if !is_there {
                    return;
                }
                (sources, parts) = status.reports.changes();
            }
            () = any(&mut sources) => {}
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

/// Waits until any of them changes. Those that will not change any more are not waited for.
async fn any(sources: &mut Vec<Box<dyn Changed>>) {
    while !sources.is_empty() {
        let (is_there, ended, _) = select_all(sources.iter_mut().map(|source| source.changed())).await;
        if is_there {
            return;
        }
        drop(sources.remove(ended));
    }
    std::future::pending::<()>().await;
}

fn say(line: &Line) {
    match line {
        Line::Appeared(Problem { code, message, hint, object }) => {
            tracing::warn!(code = code.as_str(), object, hint, "{message}");
        }
        Line::Over(Problem { code, object, .. }) => tracing::info!(code = code.as_str(), object, "no longer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: ProblemCode, message: &str) -> Problem {
        Problem::new(code, message, "", "10.100.3.0/24")
    }

    #[test]
    fn a_problem_is_said_when_it_comes_and_when_it_is_over_and_not_between() {
        let (mut log, start) = (ProblemLog::default(), Instant::now());
        let full = problem(ProblemCode::EnvFileUnwritable, "the disk is full");
        assert_eq!(log.look(std::slice::from_ref(&full), start), [Line::Appeared(full.clone())]);
        assert_eq!(log.look(std::slice::from_ref(&full), start + LOOK_EVERY), []);
        assert_eq!(log.look(&[], start + LOOK_EVERY * 2), [], "it may be back with the next pass");
        assert_eq!(log.look(std::slice::from_ref(&full), start + LOOK_EVERY * 3), []);
        assert_eq!(log.look(&[], start + LOOK_EVERY * 3 + OVER_AFTER), [Line::Over(full.clone())]);
        assert_eq!(log.look(&[], start + LOOK_EVERY * 9), []);
        assert_eq!(log.look(std::slice::from_ref(&full), start + LOOK_EVERY * 10), [Line::Appeared(full)]);
    }

    #[test]
    fn what_every_start_passes_through_is_said_only_if_it_lasts() {
        let (mut log, start) = (ProblemLog::default(), Instant::now());
        let waiting = problem(ProblemCode::StoreConnecting, "the store has not answered yet");
        assert_eq!(log.look(std::slice::from_ref(&waiting), start), []);
        assert_eq!(log.look(&[], start + LOOK_EVERY), []);
        assert_eq!(
            log.look(std::slice::from_ref(&waiting), start + LOOK_EVERY * 2),
            [],
            "counted from its latest beginning"
        );
        assert_eq!(
            log.look(std::slice::from_ref(&waiting), start + LOOK_EVERY * 2 + STARTING_LOGGED_AFTER),
            [Line::Appeared(waiting)]
        );
    }

    #[test]
    fn what_a_stranger_can_make_up_is_not_said_here() {
        let mut log = ProblemLog::default();
        assert_eq!(log.look(&[problem(ProblemCode::SourceMismatch, "from fd00::66")], Instant::now()), []);
    }

    #[test]
    fn a_number_that_counts_on_is_no_news_and_another_text_is() {
        let (mut log, start) = (ProblemLog::default(), Instant::now());
        let dropped = |text| problem(ProblemCode::KernelRefused, text);
        assert_eq!(log.look(&[dropped("3 packets")], start).len(), 1);
        assert_eq!(log.look(&[dropped("4 packets")], start + LOOK_EVERY).len(), 0);
        assert_eq!(log.look(&[dropped("4 packets"), dropped("no memory")], start + LOOK_EVERY).len(), 1);
    }
}
