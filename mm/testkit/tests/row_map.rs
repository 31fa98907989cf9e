//! `mm/docs/rows.md` judged: every row of the specification is there, and every test that it names is a test.

use std::{collections::BTreeMap, fs, path::Path};

/// Rows that are promised: system, and its rows.
const PROMISED: &[(u32, &[u32])] = &[
    (1, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    (2, &[2, 3, 4, 5]),
    (3, &[1, 2, 3, 4, 5, 6, 7, 8]),
    (4, &[1, 2, 3, 4, 5]),
    (5, &[1, 2, 3, 4, 5, 6, 7, 8]),
    (6, &[1, 2, 3]),
    (7, &[1, 2, 3]),
    (8, &[1, 2, 3, 4]),
    (9, &[1]),
    (10, &[1, 2, 3, 4]),
    (14, &[1, 2, 3, 4, 5, 6]),
    (16, &[1, 2, 3, 5]),
    (17, &[1]),
    (18, &[1, 2, 3]),
    (19, &[1, 2, 3, 4]),
    (20, &[1, 3]),
    (21, &[1]),
    (27, &[2, 3]),
];

fn read(path: &str) -> Result<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(root.join(path)).map_err(|error| format!("{path}: {error}"))
}

/// What stands between back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of a page's tables, each with the tests that it names: lines that begin with `| T1.1 |` or `| C1 |`.
fn tables(page: &str) -> Result<BTreeMap<String, Vec<&str>>, String> {
    let mut rows = BTreeMap::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("| ")) {
        let (row, rest) = line
            .split_once(" |")
            .ok_or_else(|| format!("half a row: {line}"))?;
        let is_row = row.starts_with(['T', 'C']) && row[1..].starts_with(|c: char| c.is_ascii_digit());
        if !is_row {
            continue;
        }
        let tests = quoted(rest).filter(|word| word.contains("::")).collect();
        if rows.insert(row.to_owned(), tests).is_some() {
            return Err(format!("{row} stands twice"));
        }
    }
    Ok(rows)
}

/// Whether `source` has a test, a trial, or a bench of that name: a function that is marked as a test, a name in a list
/// of trials, or a function of a bench or of a ring-3 program, whose trial in QEMU runs all of it.
fn has_test(path: &str, source: &str, name: &str) -> bool {
    let listed = [format!("\n    {name}: \""), format!("\n    \"{name}\": \"")];
    if listed.iter().any(|entry| source.contains(entry)) {
        return true;
    }
    let Some(at) = source.find(&format!("fn {name}(")) else {
        return false;
    };
    let attributes = source[..at].rsplit("\n\n").next().unwrap_or_default();
    attributes.contains("#[test]") || path.contains("/benches/") || path.starts_with("tests/user/")
}

/// What is wrong with a test that `row` names.
fn judge(row: &str, test: &str) -> Result<(), String> {
    let (path, name) = test.split_once("::").ok_or("a test is path::name")?;
    if has_test(path, &read(path)?, name) {
        Ok(())
    } else {
        Err(format!("{row}: {path} has no test {name}"))
    }
}

/// Whether one of `tests` has the name of the row.
fn is_named(row: &str, tests: &[&str]) -> bool {
    let name = format!("::{}_", row.to_lowercase().replace('.', "_"));
    tests.iter().any(|test| test.contains(&name))
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn every_promised_row_has_its_tests() -> Result<(), String> {
    let page = read("mm/docs/rows.md")?;
    let rows = tables(&page)?;
    for (row, tests) in &rows {
        tests.iter().try_for_each(|test| judge(row, test))?;
    }
    let promised = PROMISED
        .iter()
        .flat_map(|&(system, rows)| rows.iter().map(move |row| format!("T{system}.{row}")));
    for row in promised {
        // What is missing must be owned up to.
        let missing = page.contains(&format!("\n- {row}: "));
        let tested = rows.get(&row).is_some_and(|tests| is_named(&row, tests));
        if missing == tested {
            return Err(format!(
                "{row} must have a test of its name or stand among the rows without one"
            ));
        }
    }
    Ok(())
}

#[test]
fn a_wrong_map_is_noticed() {
    let here = "mm/testkit/tests/row_map.rs";
    assert_eq!(judge("C1", &format!("{here}::a_wrong_map_is_noticed")), Ok(()));
    assert!(is_named("T1.1", &["a.rs::b", "a.rs::t1_1_one"]));
    assert!(!is_named("T1.1", &["a.rs::t1_10_ten", "a.rs::one"]));
    assert!(judge("C1", &format!("{here}::judge")).is_err(), "no test");
    assert!(judge("C1", &format!("{here}::nothing_of_the_kind")).is_err());
    assert!(judge("C1", "mm/no/such/file.rs::a").is_err());
    let tests = [("C7".to_owned(), vec!["a::b", "c::d"])];
    assert_eq!(
        tables("| C7 | text | `a::b`, `c::d` |\n| race | x |"),
        Ok(tests.into())
    );
    assert!(tables("| T1.1 | a | |\n| T1.1 | b | |").is_err());
}
