//! `floors`: no module of `mm` may use one of a higher floor.
//!
//! The table stands in mm/docs/design.md, in rows `| F3 | buddy, slab, folio |`; each top-level module of mm/src has
//! its place there. Every path that starts with `crate::` or climbs out with `super::` is an edge, whether in a `use`
//! or in the middle of an expression. Names that mm/src/lib.rs re-exports count as the module they come from.
//! Code under `#[cfg(test)]` may look upward: a lower floor's tests can need a whole machine.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{Outcome, none_left};

/// Module → floor.
type Floors = BTreeMap<String, u32>;

/// A use of one module by another, where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edge {
    from: String,
    to: String,
    line: usize,
}

/// Checks the crate `mm` of the workspace at `root`.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Outcome {
    none_left(arguments)?;
    let design = root.join("mm/docs/design.md");
    let table = read(&design)?;
    let floors = floors(&table).map_err(|message| format!("{}: {message}", design.display()))?;
    let sources = root.join("mm/src");
    let exports = exports(&read(&sources.join("lib.rs"))?);
    let mut faults = Vec::new();
    let mut files = Vec::new();
    collect(&sources, &mut files)?;
    for file in &files {
        let path = module_path(file.strip_prefix(&sources).unwrap_or(file));
        // lib.rs stands above all floors: it only names them.
        if path.is_empty() {
            continue;
        }
        for edge in edges(&read(file)?, &path, &exports) {
            let fault = judge(&edge, &floors).err();
            faults.extend(fault.map(|fault| format!("{}:{}: {fault}", file.display(), edge.line)));
        }
    }
    if faults.is_empty() {
        eprintln!("xtask: floors: {} files, no upward edge", files.len());
        return Ok(());
    }
    Err(format!("floors:\n{}", faults.join("\n")))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Outcome {
    let entries =
        fs::read_dir(folder).map_err(|error| format!("cannot list {}: {error}", folder.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The module path of a file relative to `src`: `buddy/zone.rs` → `[buddy, zone]`, `lib.rs` → `[]`.
fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<_> = file
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    let stem = path.pop().unwrap_or_default();
    let stem = stem.strip_suffix(".rs").unwrap_or(&stem);
    if stem != "mod" && stem != "lib" {
        path.push(stem.to_owned());
    }
    path
}

/// Reads the floor table out of a markdown text.
fn floors(text: &str) -> Result<Floors, String> {
    let mut floors = Floors::new();
    for line in text.lines() {
        let mut cells = line.trim().trim_start_matches('|').split('|').map(str::trim);
        let number = cells
            .next()
            .and_then(|cell| cell.trim_matches(['*', '`']).strip_prefix('F')?.parse().ok());
        let (Some(number), Some(modules)) = (number, cells.next()) else {
            continue;
        };
        // Remarks in parentheses are for readers.
        let modules = modules.split('(').next().unwrap_or_default();
        for module in modules
            .split([',', ' '])
            .map(|name| name.trim_matches('`'))
            .filter(|name| !name.is_empty())
        {
            if floors.insert(module.to_owned(), number).is_some() {
                return Err(format!("module {module} stands on two floors"));
            }
        }
    }
    if floors.is_empty() {
        return Err("no row of the floor table was found (`| F0 | addr, order |`)".into());
    }
    Ok(floors)
}

/// Says what is wrong with an edge, if something is.
fn judge(edge: &Edge, floors: &Floors) -> Outcome {
    let floor = |module: &str| {
        floors
            .get(module)
            .copied()
            .ok_or_else(|| format!("module {module} has no floor"))
    };
    let (from, to) = (floor(&edge.from)?, floor(&edge.to)?);
    if to > from {
        return Err(format!("{} (F{from}) uses {} (F{to})", edge.from, edge.to));
    }
    Ok(())
}

/// What `pub use` in lib.rs makes available at the root: name → module it comes from.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let tokens = tokens(lib);
    let mut exports = BTreeMap::new();
    for (at, token) in tokens.iter().enumerate() {
        if token.text != "use" {
            continue;
        }
        let mut rest = &tokens[at + 1..];
        while let [first, second, tail @ ..] = rest {
            if second.text != "::" || !matches!(first.text, "crate" | "self") {
                break;
            }
            rest = tail;
        }
        let Some(module) = rest.first() else { continue };
        let statement = rest.iter().take_while(|token| token.text != ";");
        for name in statement.skip(1).filter(|token| is_name(token.text)) {
            exports
                .entry(name.text.to_owned())
                .or_insert_with(|| module.text.to_owned());
        }
    }
    exports
}

/// Every edge that leaves the module at `path` from its own top-level module to another.
fn edges(source: &str, path: &[String], exports: &BTreeMap<String, String>) -> Vec<Edge> {
    let tokens = tokens(source);
    let tokens = without_tests(&tokens);
    let mut found = Vec::new();
    // Inline modules: name and the brace depth inside which they live.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token.text {
            "{" => {
                depth += 1;
                if let [.., keyword, name] = &tokens[..at]
                    && keyword.text == "mod"
                {
                    inline.push((name.text.to_owned(), depth));
                }
            }
            "}" => {
                inline.pop_if(|(_, inside)| *inside == depth);
                depth = usize::saturating_sub(depth, 1);
            }
            "crate" | "super" if at == 0 || tokens[at - 1].text != "::" => {
                let here = path
                    .iter()
                    .cloned()
                    .chain(inline.iter().map(|(name, _)| name.clone()));
                for to in targets(&tokens[at..], here.collect(), exports) {
                    let edge = Edge {
                        from: path[0].clone(),
                        to,
                        line: token.line,
                    };
                    if edge.from != edge.to && !found.contains(&edge) {
                        found.push(edge);
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The top-level modules that a path starting at `tokens[0]` (`crate` or `super`) leads to.
fn targets(tokens: &[Token<'_>], mut here: Vec<String>, exports: &BTreeMap<String, String>) -> Vec<String> {
    let mut rest = tokens;
    while let [word, colons, tail @ ..] = rest {
        match word.text {
            "crate" => here.clear(),
            "super" => drop(here.pop()),
            _ => break,
        }
        if colons.text != "::" {
            return Vec::new();
        }
        rest = tail;
    }
    // Still inside our own top-level module.
    if !here.is_empty() {
        return Vec::new();
    }
    let names = match rest.first() {
        Some(token) if token.text == "{" => group(&rest[1..]),
        Some(token) => vec![(token.text, rest.get(1).map_or("", |next| next.text))],
        None => Vec::new(),
    };
    let names = names
        .into_iter()
        .filter(|(name, next)| is_name(name) && *next != "!" && *name != "self");
    names
        .map(|(name, _)| exports.get(name).map_or(name, String::as_str).to_owned())
        .collect()
}

/// The first names of the members of a `{...}` group, each with the token that follows it.
fn group<'a>(tokens: &[Token<'a>]) -> Vec<(&'a str, &'a str)> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut expects_name = true;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "{" => depth += 1,
            "}" if depth == 0 => break,
            "}" => depth -= 1,
            "," if depth == 0 => expects_name = true,
            name if expects_name => {
                names.push((name, tokens.get(at + 1).map_or("", |next| next.text)));
                expects_name = false;
            }
            _ => {}
        }
    }
    names
}

/// Cuts out what follows each `#[cfg(test)]`: up to the end of its block, or to its semicolon.
fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_mark = tokens.len() - at >= MARK.len()
            && tokens[at..]
                .iter()
                .zip(MARK)
                .all(|(token, expected)| token.text == expected);
        if is_mark {
            at = end_of_item(tokens, at + MARK.len());
        } else {
            kept.push(tokens[at]);
            at += 1;
        }
    }
    kept
}

fn end_of_item(tokens: &[Token<'_>], start: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(start) {
        match token.text {
            "{" => depth += 1,
            "}" if depth == 1 => return at + 1,
            "}" => depth -= 1,
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// A word or a sign of Rust source, as far as paths need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Splits source text, without comments and literals.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = skipped(rest);
        let (piece, tail) = if length > 0 {
            rest.split_at(length)
        } else {
            rest.split_at(word(rest, first))
        };
        if length == 0 && !first.is_whitespace() {
            found.push(Token { text: piece, line });
        }
        line += piece.matches('\n').count();
        rest = tail;
    }
    found
}

/// Length of the token at the start of `rest`.
fn word(rest: &str, first: char) -> usize {
    if is_name(rest) {
        return rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
    }
    if rest.starts_with("::") {
        2
    } else {
        first.len_utf8()
    }
}

/// Length of the comment or literal at the start of `rest`; 0 when there is none.
fn skipped(rest: &str) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if let Some(raw) = raw_string(rest) {
        return raw;
    }
    let quote = rest.strip_prefix('b').unwrap_or(rest);
    if quote.starts_with('"') {
        return rest.len() - quote.len() + string(quote);
    }
    // A character, not a lifetime: closed by a quote after one character or an escape.
    let mut characters = rest.char_indices();
    match (characters.next(), characters.next(), characters.next()) {
        (Some((_, '\'')), Some((_, '\\')), _) => rest[2..]
            .char_indices()
            .skip(1)
            .find(|(_, c)| *c == '\'')
            .map_or(1, |(at, _)| at + 3),
        (Some((_, '\'')), Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let start = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('r')?;
    let hashes = start.len() - start.trim_start_matches('#').len();
    let body = start[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = body.find(&close)?;
    Some(rest.len() - body.len() + end + close.len())
}

fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{edges, exports, floors, judge, module_path};

    const TABLE: &str = "\
# Design
| floor | modules | what |
|---|---|---|
| F1 | `platform`, sync | the contract |
| F3 | buddy, slab, folio | frames |
| F7 | fault (and zap) | actions |
";

    /// `FROM -> TO` of every edge of `source`, which stands in file `file`.
    fn found(file: &str, source: &str) -> Vec<String> {
        let exports =
            exports("pub mod fault;\npub use crate::buddy::{Zone, free_area::{FreeArea as Area}};\n");
        let edges = edges(source, &module_path(Path::new(file)), &exports);
        edges
            .iter()
            .map(|edge| format!("{} -> {}:{}", edge.from, edge.to, edge.line))
            .collect()
    }

    #[test]
    fn an_upward_edge_is_a_fault() {
        let floors = floors(TABLE).expect("the table has rows");
        let source = "//! Buddy.\nuse crate::{\n    fault::Fault,\n    sync::Lock,\n};\n";
        let edges = edges(source, &["buddy".into(), "zone".into()], &exports(""));
        let faults: Vec<_> = edges
            .iter()
            .filter_map(|edge| judge(edge, &floors).err())
            .collect();
        assert_eq!(faults, ["buddy (F3) uses fault (F7)"]);
    }

    #[test]
    fn downward_and_level_edges_are_fine() {
        let floors = floors(TABLE).expect("the table has rows");
        for source in [
            "use crate::sync::Lock;",
            "use crate::folio::Folio;",
            "use super::free_area::X;",
        ] {
            for edge in edges(source, &["buddy".into(), "zone".into()], &exports("")) {
                assert_eq!(judge(&edge, &floors), Ok(()), "{source}");
            }
        }
    }

    #[test]
    fn a_module_without_a_floor_is_a_fault() {
        let floors = floors(TABLE).expect("the table has rows");
        let edges = edges("use crate::novelty::New;", &["buddy".into()], &exports(""));
        assert_eq!(
            judge(&edges[0], &floors),
            Err("module novelty has no floor".into())
        );
    }

    #[test]
    fn every_way_to_write_a_path_is_an_edge() {
        assert_eq!(
            found("buddy/zone.rs", "fn f() { crate::fault::handle() }"),
            ["buddy -> fault:1"]
        );
        assert_eq!(
            found("buddy/zone.rs", "use super::super::fault;"),
            ["buddy -> fault:1"]
        );
        assert_eq!(
            found("buddy/mod.rs", "\nuse super::fault::X;"),
            ["buddy -> fault:2"]
        );
        assert_eq!(
            found("buddy/zone.rs", "use super::fault::X;"),
            [""; 0],
            "buddy::fault, our own"
        );
        assert_eq!(
            found("slab.rs", "use super::{fault, folio::{Folio, Lock}, self};").len(),
            2
        );
        assert_eq!(
            found("slab.rs", "mod inner { use super::super::fault::X; }"),
            ["slab -> fault:1"]
        );
        assert_eq!(
            found("slab.rs", "mod inner { use super::fault::X; }"),
            [""; 0],
            "slab::fault, our own"
        );
    }

    #[test]
    fn reexported_names_count_as_their_module() {
        assert_eq!(found("slab.rs", "use crate::Zone;"), ["slab -> buddy:1"]);
        assert_eq!(
            found("slab.rs", "use crate::{Area, FreeArea};"),
            ["slab -> buddy:1"]
        );
    }

    #[test]
    fn tests_comments_literals_and_macros_are_no_edges() {
        assert_eq!(
            found(
                "slab.rs",
                "#[cfg(test)]\nmod tests { use crate::fault::X; }\nuse crate::sync;"
            ),
            ["slab -> sync:3"]
        );
        assert_eq!(
            found(
                "slab.rs",
                "// crate::fault\n/* crate::fault /* */ */ \"crate::fault\" r#\"crate::fault\"#"
            ),
            [""; 0]
        );
        assert_eq!(
            found(
                "slab.rs",
                "fn f<'a>(c: char) { c == '\"' || c == '\\''; crate::vm_assert!(x) }"
            ),
            [""; 0]
        );
        assert_eq!(
            found("slab.rs", "pub(crate) fn f() {} pub(super) use x;"),
            [""; 0]
        );
    }

    #[test]
    fn a_remark_is_no_module() {
        let floors = floors(TABLE).expect("the table has rows");
        assert!(floors.contains_key("fault") && !floors.contains_key("zap"));
    }

    #[test]
    fn a_broken_table_is_refused() {
        assert!(floors("no table").is_err());
        assert!(floors("| F1 | sync |\n| F2 | sync |").is_err_and(|message| message.contains("two floors")));
    }
}
