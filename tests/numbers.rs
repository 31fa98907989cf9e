//! What `thp-numbers` prints, and where Linux prints something else.
//!
//! ```text
//!   # a comment
//!   T3.4b pages mc0=0 ...             a line of the program, here and on Linux 6.1
//!   ~ 0009 T3.4b change ...           what Linux 6.1 prints instead of the line above, and the number of the decision
//!                                     record (mm/docs/decisions) that says why
//!   + 0013 /proc/meminfo Percpu       a line that Linux 6.1 alone prints
//! ```

use std::fmt::Write;

/// The text of `tests/data/thp-numbers.txt`.
pub const EXPECTED: &str = include_str!("data/thp-numbers.txt");
/// The program's first line.
pub const BEGIN: &str = "thp-numbers: begin";
/// The program's last line.
pub const END: &str = "thp-numbers: end";
/// Most differing lines that a message shows.
const SHOWN: usize = 12;

/// Whose lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Ours.
    Cleave,
    /// Linux 6.1.
    Linux,
}

/// A line of ours and of Linux; which decision explains the difference.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    ours: Option<&'a str>,
    linux: &'a str,
    decision: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(&self, kernel: Kernel) -> Option<&'a str> {
        match kernel {
            Kernel::Cleave => self.ours,
            Kernel::Linux => Some(self.linux),
        }
    }
}

fn parse(text: &str) -> Result<Vec<Line<'_>>, String> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |what| format!("line {number}: {what}");
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        if let Some(rest) = line.strip_prefix("+ ") {
            let (decision, theirs) = rest.split_once(' ').ok_or_else(|| wrong("no decision"))?;
            lines.push(Line {
                ours: None,
                linux: theirs,
                decision: Some(decision),
            });
        } else if let Some(rest) = line.strip_prefix("~ ") {
            let (decision, theirs) = rest.split_once(' ').ok_or_else(|| wrong("no decision"))?;
            let above = lines.last_mut().ok_or_else(|| wrong("no line above"))?;
            if above.decision.is_some() || above.linux == theirs {
                return Err(wrong("no difference, or a second one"));
            }
            above.linux = theirs;
            above.decision = Some(decision);
        } else {
            lines.push(Line {
                ours: Some(line),
                linux: line,
                decision: None,
            });
        }
    }
    Ok(lines)
}

/// Returns the lines that `kernel` is expected to print.
///
/// # Errors
/// The data are not laid out as this module says.
pub fn expected(text: &str, kernel: Kernel) -> Result<Vec<&str>, String> {
    let lines = parse(text)?.into_iter();
    Ok(lines.filter_map(|line| line.of(kernel)).collect())
}

/// Returns the numbers of the decision records that explain the differences.
///
/// # Errors
/// As [`expected`].
pub fn decisions(text: &str) -> Result<Vec<&str>, String> {
    Ok(parse(text)?
        .into_iter()
        .filter_map(|line| line.decision)
        .collect())
}

/// Returns what the program printed, out of all that a console showed.
///
/// # Errors
/// It did not begin, or did not come to its end: the last lines.
pub fn printed(console: &str) -> Result<Vec<&str>, String> {
    let lines = || console.lines().map(|line| line.trim_end_matches('\r'));
    let begin = lines().position(|line| line.ends_with(BEGIN));
    let end = lines().position(|line| line == END);
    match (begin, end) {
        (Some(begin), Some(end)) if begin < end => Ok(lines().take(end).skip(begin + 1).collect()),
        _ => {
            let count = lines().count();
            let last: Vec<&str> = lines().skip(count.saturating_sub(SHOWN)).collect();
            Err(format!(
                "thp-numbers did not come to its end:\n{}",
                last.join("\n")
            ))
        }
    }
}

/// Compares line by line.
///
/// # Errors
/// The first lines that differ.
pub fn compare(expected: &[&str], found: &[&str]) -> Result<(), String> {
    let at = |lines: &[&str], index: usize| lines.get(index).copied().unwrap_or("(no line)").to_owned();
    let differing: Vec<usize> = (0..expected.len().max(found.len()))
        .filter(|&index| expected.get(index) != found.get(index))
        .collect();
    if differing.is_empty() {
        return Ok(());
    }
    let mut message = format!("{} of {} lines differ\n", differing.len(), expected.len());
    for &index in differing.iter().take(SHOWN) {
        // A `String` takes everything.
        let _ = writeln!(message, "- {}\n+ {}", at(expected, index), at(found, index));
    }
    Err(message)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{EXPECTED, Kernel, compare, decisions, expected, printed};

    const DATA: &str = "# comment\nA 1\n~ 0004 A 2\n\n+ 0012 M\nB 3\n";

    #[test]
    fn a_marked_line_is_the_line_of_linux() {
        assert_eq!(expected(DATA, Kernel::Cleave), Ok(vec!["A 1", "B 3"]));
        assert_eq!(expected(DATA, Kernel::Linux), Ok(vec!["A 2", "M", "B 3"]));
        assert_eq!(decisions(DATA), Ok(vec!["0004", "0012"]));
    }

    #[test]
    fn marks_without_a_difference_are_refused() {
        for text in [
            "~ 0004 A",
            "A\n~ 0004 A",
            "A\n~ 0004",
            "+ 0004",
            "A\n~ 1 B\n~ 1 C",
        ] {
            assert!(expected(text, Kernel::Linux).is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_what_the_program_printed_counts() {
        let console = "booting\n\u{1b}cthp-numbers: begin\r\nA 1\r\nthp-numbers: end\r\nmore\n";
        assert_eq!(printed(console), Ok(vec!["A 1"]));
        assert!(printed("thp-numbers: begin\nA 1\nthp-numbers: share: no such file\n").is_err());
    }

    #[test]
    fn differing_missing_and_surplus_lines_are_told() {
        assert_eq!(compare(&["A"], &["A"]), Ok(()));
        assert!(compare(&["A", "B"], &["A"]).is_err_and(|text| text.contains("- B\n+ (no line)")));
        assert!(compare(&["A"], &["A", "B"]).is_err_and(|text| text.contains("- (no line)\n+ B")));
    }

    #[test]
    fn every_difference_has_its_decision_record() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mm/docs/decisions");
        let records: Vec<String> = fs::read_dir(folder)
            .expect("the decision records")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        for decision in decisions(EXPECTED).expect("data laid out as they should be") {
            let prefix = format!("{decision}-");
            assert!(
                records.iter().any(|name| name.starts_with(&prefix)),
                "no record {decision}"
            );
        }
    }
}
