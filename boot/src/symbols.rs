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
        let mut found = Vec::new();
        let Ok(mut frames) = self.loader.find_frames(address) else {
            return found;
        };
        while let Ok(Some(frame)) = frames.next() {
            let name = frame
                .function
                .as_ref()
                .and_then(|name| name.demangle().ok().map(|name| name.into_owned()));
            let place = frame.location.as_ref().map(place).unwrap_or_default();
            found.push(format!("{}{place}", name.as_deref().map_or("?", without_hash)));
        }
        if found.is_empty() {
            found.extend(self.loader.find_symbol(address).map(demangled));
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
    let file = Path::new(file)
        .strip_prefix(cargo::workspace_root())
        .unwrap_or(Path::new(file));
    let line = location.line.unwrap_or(0);
    format!("\n{:25}at {}:{line}", "", file.display())
}

#[cfg(test)]
mod tests {
    use super::without_hash;

    #[test]
    fn only_a_hash_is_cut_off() {
        assert_eq!(without_hash("kernel::panic::h0123456789abcdef"), "kernel::panic");
        assert_eq!(without_hash("kernel::heap::hello"), "kernel::heap::hello");
    }
}
