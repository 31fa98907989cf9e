//! Names the places of a kernel backtrace, from the symbols that stayed in the target directory.

use std::{fmt::Write, path::Path};

use addr2line::Loader;

use crate::{Error, Result, cargo};

/// The kernel's symbols.
pub struct Symbols {
    loader: Loader,
}

impl std::fmt::Debug for Symbols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Symbols")
    }
}

impl Symbols {
    /// Reads the symbols of the unstripped kernel `elf`.
    ///
    /// # Errors
    /// [`Error::Unexpected`] when it is no ELF file with readable debug data.
    pub fn load(elf: &Path) -> Result<Self> {
        let loader = Loader::new(elf);
        let unreadable =
            |error| Error::Unexpected(format!("cannot read the symbols of {}: {error}", elf.display()));
        Ok(Self {
            loader: loader.map_err(unreadable)?,
        })
    }

    /// The lines of a backtrace: for each return address its functions, inlined ones first, each with its place.
    #[must_use]
    pub fn backtrace(&self, addresses: &[u64]) -> String {
        let mut text = String::from("backtrace (innermost call first):\n");
        for (number, address) in addresses.iter().enumerate() {
            let mut frames = self.frames(*address);
            if frames.is_empty() {
                frames.push("?".into());
            }
            for (inlined, frame) in frames.iter().enumerate() {
                // Writing to a String cannot fail.
                let _ = match inlined {
                    0 => writeln!(text, "{number:4}: {address:#018x} {frame}"),
                    _ => writeln!(text, "{:4}  {:18} {frame}", "", ""),
                };
            }
        }
        text
    }

    /// The functions around a return address. The call stands before the address it returns to.
    fn frames(&self, return_address: u64) -> Vec<String> {
        let address = return_address.saturating_sub(1);
        let symbol = self.loader.find_symbol(address).map(demangled);
        let mut found = Vec::new();
        let Ok(mut frames) = self.loader.find_frames(address) else {
            return found;
        };
        let mut places = Vec::new();
        while let Ok(Some(frame)) = frames.next() {
            let name = frame
                .function
                .as_ref()
                .and_then(|name| Some(name.demangle().ok()?.into_owned()));
            places.push((name, frame.location.as_ref().map(place).unwrap_or_default()));
        }
        // Line tables name functions without their module; the symbol of the function that is really there has it.
        if let Some((name, _)) = places.last_mut() {
            *name = symbol.clone().or(name.take());
        }
        for (name, place) in places {
            found.push(format!("{}{place}", name.as_deref().map_or("?", without_hash)));
        }
        if found.is_empty() {
            found.extend(symbol);
        }
        found
    }
}

fn demangled(symbol: &str) -> String {
    let name = addr2line::demangle_auto(symbol.into(), None).into_owned();
    without_hash(&name).to_owned()
}

/// A name without the `::h0123456789abcdef` of older manglings.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((rest, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => rest,
        _ => name,
    }
}

fn place(location: &addr2line::Location<'_>) -> String {
    let Some(file) = location.file else {
        return String::new();
    };
    let line = location.line.unwrap_or(0);
    format!("\n{:25}at {}:{line}", "", short(file))
}

/// A path without what only says where this computer keeps things.
fn short(file: &str) -> &str {
    let root = cargo::workspace_root().to_str().unwrap_or_default();
    if let Some(inside) = file.strip_prefix(root) {
        return inside.trim_start_matches('/');
    }
    if let Some((_, inside)) = file.split_once("/registry/src/") {
        return inside.split_once('/').map_or(inside, |(_, path)| path);
    }
    file.find("/library/").map_or(file, |at| &file[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::{short, without_hash};

    #[test]
    fn only_a_hash_is_cut_off() {
        assert_eq!(without_hash("kernel::panic::h0123456789abcdef"), "kernel::panic");
        assert_eq!(without_hash("kernel::heap::hello"), "kernel::heap::hello");
    }

    #[test]
    fn paths_start_where_the_reader_knows_them() {
        let core = "/rustc/e50aa6fba4e63ab34c72bf9acfd2c307c1155d1a/library/core/src/panicking.rs";
        assert_eq!(short(core), "library/core/src/panicking.rs");
        let crate_file = "/home/u/.cargo/registry/src/index-0123/spin-0.12.3/src/lib.rs";
        assert_eq!(short(crate_file), "spin-0.12.3/src/lib.rs");
        assert_eq!(short("kernel/src/main.rs"), "kernel/src/main.rs");
    }
}
