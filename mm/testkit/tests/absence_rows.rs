//! Rows T6.1 and T9.1 of the specification: what `mm` must not have. The sources are read, comments left out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mm::{
    fault::Access,
    pgtable::{PmdEntry, PteEntry},
};

/// Every word (identifier) of a source, without comments and without the tests at its end.
fn words(source: &str) -> impl Iterator<Item = String> {
    let product = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code = product
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    let words: Vec<String> = code
        .flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || c == '_')))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    words.into_iter()
}

/// All Rust sources below `dir`, with their text.
fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            found.push((path, text));
        }
    }
    found
}

/// The sources of `mm` and of the kernel.
fn all_sources() -> Vec<(PathBuf, String)> {
    let testkit = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found: Vec<_> = ["../src", "../../kernel/src"]
        .iter()
        .flat_map(|dir| sources(&testkit.join(dir)))
        .collect();
    assert!(found.len() > 50, "the sources are where they are looked for");
    found
}

/// Words of the sources that contain one of `parts`.
fn words_with(files: &[(PathBuf, String)], parts: &[&str]) -> Vec<(PathBuf, String)> {
    let offends = |word: &String| parts.iter().any(|part| word.contains(part));
    let of_file = |(path, text): &(PathBuf, String)| {
        let path = path.clone();
        words(text)
            .filter(offends)
            .map(move |word| (path.clone(), word))
            .collect::<Vec<_>>()
    };
    files.iter().flat_map(of_file).collect()
}

#[test]
fn the_search_finds_code_and_passes_comments_by() {
    let sample = |text: &str| vec![(PathBuf::new(), text.to_owned())];
    let forbidden = &["splitting"];
    assert_eq!(
        words_with(&sample("if pmd.IS_SPLITTING() { // splitting"), forbidden).len(),
        1
    );
    assert_eq!(
        words_with(
            &sample("/// While it is splitting.\n//! splitting\nlet split = 1;"),
            forbidden
        ),
        []
    );
}

/// Old Linux could be told to split a page as a side effect of looking it up.
#[test]
fn t6_1_looking_up_cannot_be_told_to_split() {
    assert_eq!(
        words_with(
            &all_sources(),
            &["foll_split", "splitonlookup", "split_on_lookup"]
        ),
        []
    );
    // All that a caller can ask for.
    for access in [Access::Read, Access::Write, Access::Exec] {
        match access {
            Access::Read | Access::Write | Access::Exec => {}
        }
    }
    // What looks up for others calls nothing that splits. (A write fault below it may split a PMD to copy a base page.)
    let lookups = all_sources()
        .into_iter()
        .filter(|(path, _)| path.ends_with("mm/testkit/../src/pin.rs"));
    let lookups: Vec<_> = lookups.collect();
    assert_eq!(lookups.len(), 1);
    assert_eq!(
        words_with(&lookups, &["split_huge", "split_pmd", "split_folio"]),
        []
    );
}

/// Old Linux had a bit that said "this PMD is being split", for which walkers had to wait.
#[test]
fn t9_1_no_entry_is_ever_being_split() {
    assert_eq!(words_with(&all_sources(), &["splitting"]), []);
    // Every kind of entry there is: a new one must be added here, and thought about.
    let (pmd, pte) = (PmdEntry::None, PteEntry::None);
    match pmd {
        PmdEntry::None | PmdEntry::Table(_) | PmdEntry::Huge { .. } | PmdEntry::Migration { .. } => {}
    }
    match pte {
        PteEntry::None | PteEntry::Present { .. } | PteEntry::Migration { .. } => {}
    }
}
