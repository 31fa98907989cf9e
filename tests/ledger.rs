//! Which trial a machine's records and its end are news of.
//!
//! ```text
//!            STARTED            PASSED | FAILED          next STARTED, or the machine's end
//!   waiting ─────────► running ────────────────► told ──────────────────────────────────────► decided
//!                         └── the machine ends: the end itself is the verdict ─────────────────►┘
//! ```
//! A verdict is held back until the next trial starts or the machine ends in order, so that a machine that falls over
//! right behind a trial falls on that trial.

use std::collections::VecDeque;

use boot::{channels::TestResult, outcome::End};

use crate::list::Expected;

/// Passed, or why not.
pub type Verdict = Result<(), String>;

/// The account of one boot that runs a list of trials.
#[derive(Debug)]
pub struct Ledger {
    expected: Expected,
    waiting: VecDeque<String>,
    running: Option<String>,
    told: Option<(String, Verdict)>,
    any_started: bool,
}

impl Ledger {
    /// An account of trials that will run in this order and are all expected to end alike.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = String>, expected: Expected) -> Self {
        let waiting = names.into_iter().collect();
        Self {
            expected,
            waiting,
            running: None,
            told: None,
            any_started: false,
        }
    }

    /// The trial that runs now.
    #[must_use]
    pub fn running(&self) -> Option<&str> {
        self.running.as_deref()
    }

    /// Takes a TEST record; returns the verdict that it makes final.
    pub fn record(&mut self, name: &str, result: TestResult, message: &str) -> Option<(String, Verdict)> {
        match result {
            TestResult::Started => {
                self.any_started = true;
                self.waiting.retain(|waiting| waiting != name);
                let unfinished = self.running.replace(name.to_owned());
                let silent = |name| {
                    (
                        name,
                        Err("the next trial started, but this one told no result".to_owned()),
                    )
                };
                self.told.take().or(unfinished.map(silent))
            }
            TestResult::Passed => self.tell(name, Ok(())),
            TestResult::Failed => self.tell(name, Err(message.to_owned())),
        }
    }

    fn tell(&mut self, name: &str, verdict: Verdict) -> Option<(String, Verdict)> {
        self.waiting.retain(|waiting| waiting != name);
        self.running.take_if(|running| running == name);
        self.told.replace((name.to_owned(), verdict))
    }

    /// Takes the end of the machine, with `report` as its explanation; returns every verdict that is left to give,
    /// and the trials that need another boot.
    #[must_use]
    pub fn close(mut self, end: End, report: &str) -> (Vec<(String, Verdict)>, VecDeque<String>) {
        let mut verdicts = Vec::new();
        let in_order = matches!(end, End::Orderly(_) | End::TestFailed);
        if let Some((name, verdict)) = self.told.take() {
            let spoiled = !in_order && self.running.is_none();
            let verdict = match (verdict, self.expected) {
                (Ok(()), Expected::Panics) => Err(format!("it returned, but a panic was expected\n{report}")),
                (Ok(()), _) if spoiled => Err(format!("it passed, but then: {report}")),
                (Err(message), _) => Err(format!("{message}\n{report}")),
                (passed, _) => passed,
            };
            verdicts.push((name, verdict));
        }
        if let Some(name) = self.running.take() {
            let panicked_as_it_should = self.expected == Expected::Panics && end == End::Panicked;
            let verdict = if panicked_as_it_should {
                Ok(())
            } else {
                Err(format!("while it ran: {report}"))
            };
            verdicts.push((name, verdict));
        }
        if !self.any_started && verdicts.is_empty() {
            // Another boot would end the same way.
            let message = format!("the machine ended before the first trial: {report}");
            verdicts.extend(self.waiting.drain(..).map(|name| (name, Err(message.clone()))));
        }
        (verdicts, self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use boot::{channels::TestResult, outcome::End};

    use super::Ledger;
    use crate::list::Expected;

    fn ledger(names: &[&str], expected: Expected) -> Ledger {
        Ledger::new(names.iter().map(|name| (*name).to_owned()), expected)
    }

    fn started(ledger: &mut Ledger, name: &str) -> Option<(String, super::Verdict)> {
        ledger.record(name, TestResult::Started, "")
    }

    #[test]
    fn a_verdict_is_final_when_the_next_trial_starts() {
        let mut ledger = ledger(&["a", "b"], Expected::Returns);
        assert_eq!(started(&mut ledger, "a"), None);
        assert_eq!(ledger.record("a", TestResult::Passed, ""), None);
        assert_eq!(started(&mut ledger, "b"), Some(("a".into(), Ok(()))));
        assert_eq!(ledger.record("b", TestResult::Failed, "1 != 2"), None);
        let (verdicts, rest) = ledger.close(End::TestFailed, "tail");
        assert_eq!(verdicts, [("b".into(), Err("1 != 2\ntail".into()))]);
        assert!(rest.is_empty());
    }

    #[test]
    fn a_panic_falls_on_the_running_trial_and_the_rest_runs_again() {
        let mut ledger = ledger(&["a", "b", "c"], Expected::Returns);
        started(&mut ledger, "a");
        let (verdicts, rest) = ledger.close(End::Panicked, "boom");
        assert_eq!(verdicts, [("a".into(), Err("while it ran: boom".into()))]);
        assert_eq!(rest, ["b", "c"]);
    }

    #[test]
    fn a_panic_right_behind_a_trial_falls_on_it() {
        let mut ledger = ledger(&["a", "b"], Expected::Returns);
        started(&mut ledger, "a");
        ledger.record("a", TestResult::Passed, "");
        let (verdicts, rest) = ledger.close(End::Off, "triple");
        assert_eq!(
            verdicts,
            [("a".into(), Err("it passed, but then: triple".into()))]
        );
        assert_eq!(rest, ["b"]);
    }

    #[test]
    fn a_machine_that_never_starts_a_trial_fails_them_all() {
        let (verdicts, rest) =
            ledger(&["a", "b"], Expected::Returns).close(End::Unknown(Some(1)), "no memory");
        assert_eq!(verdicts.len(), 2);
        assert!(verdicts.iter().all(|(_, verdict)| verdict.is_err()) && rest.is_empty());
    }

    #[test]
    fn an_expected_panic_must_come() {
        let mut panics = ledger(&["a"], Expected::Panics);
        started(&mut panics, "a");
        assert_eq!(panics.close(End::Panicked, "").0, [("a".into(), Ok(()))]);

        let mut resets = ledger(&["a"], Expected::Panics);
        started(&mut resets, "a");
        assert!(resets.close(End::Off, "").0[0].1.is_err());

        let mut returns = ledger(&["a"], Expected::Panics);
        started(&mut returns, "a");
        returns.record("a", TestResult::Passed, "");
        assert!(returns.close(End::Orderly(0), "").0[0].1.is_err());
    }

    #[test]
    fn an_orderly_end_in_the_middle_of_a_trial_fails_it() {
        let mut ledger = ledger(&["a", "b"], Expected::Returns);
        started(&mut ledger, "a");
        let (verdicts, rest) = ledger.close(End::Orderly(0), "ended");
        assert!(verdicts[0].1.is_err());
        assert_eq!(rest, ["b"]);
    }
}
