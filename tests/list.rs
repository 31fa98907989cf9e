//! The in-kernel trials of a kernel, read from its ELF file: listing them needs no boot.

use std::{fs, path::Path};

use linux_abi::wire::{TRIAL_RECORD_SIZE, TRIAL_SECTION, TrialHeader, trial_end};
use object::{Object, ObjectSection};

/// How a trial is expected to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It returns.
    Returns,
    /// The kernel panics.
    Panics,
}

/// What a machine must be like for a trial. Trials of the same shape can share a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Shape {
    /// Memory in MiB, if the trial cares.
    pub memory_mib: Option<u32>,
    /// Number of CPUs, if the trial cares.
    pub cpus: Option<u32>,
}

/// One in-kernel trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelTrial {
    /// `module::behaviour_it_shows`.
    pub name: String,
    /// How it is expected to end.
    pub expected: Expected,
    /// Whether it wants a boot of its own.
    pub own_boot: bool,
    /// The machine it wants.
    pub shape: Shape,
}

/// Reads the trials of the kernel `elf`, in the order in which they stand there.
///
/// # Errors
/// A message, when the file cannot be read or its trial section is not what [`linux_abi::wire`] says.
pub fn read(elf: &Path) -> Result<Vec<KernelTrial>, String> {
    let bytes = fs::read(elf).map_err(|error| format!("cannot read {}: {error}", elf.display()))?;
    let file = object::File::parse(&*bytes).map_err(|error| format!("{}: {error}", elf.display()))?;
    let Some(section) = file.section_by_name(TRIAL_SECTION) else {
        return Ok(Vec::new());
    };
    let data = section
        .data()
        .map_err(|error| format!("section {TRIAL_SECTION}: {error}"))?;
    decode(data)
}

/// Whether a trial of the kernel in folder `sources` can have a name that holds `filter`, by its source text alone.
///
/// Parts of names are identifiers or file names of the source, so a filter whose last part is found nowhere matches
/// nothing: then the kernel need not even be built. A yes promises nothing.
#[must_use]
pub fn may_match(sources: &Path, filter: &str) -> bool {
    let part = filter.rsplit("::").next().unwrap_or(filter);
    let Ok(entries) = fs::read_dir(sources) else {
        return true;
    };
    entries.flatten().any(|entry| {
        let path = entry.path();
        let is_named = entry.file_name().to_string_lossy().contains(part);
        is_named
            || if path.is_dir() {
                may_match(&path, part)
            } else {
                fs::read_to_string(&path).is_ok_and(|text| text.contains(part))
            }
    })
}

fn decode(data: &[u8]) -> Result<Vec<KernelTrial>, String> {
    let records = data.chunks_exact(TRIAL_RECORD_SIZE);
    if !records.remainder().is_empty() {
        let size = data.len();
        return Err(format!(
            "section {TRIAL_SECTION}: {size} bytes are not records of {TRIAL_RECORD_SIZE}"
        ));
    }
    records.map(decode_record).collect()
}

fn decode_record(record: &[u8]) -> Result<KernelTrial, String> {
    const NAME: usize = size_of::<[u8; 96]>();
    const _: () = assert!(
        size_of::<TrialHeader>() == NAME + 16,
        "four words follow the name"
    );
    let (name, rest) = record.split_at(NAME);
    let (words, _) = rest.as_chunks::<4>();
    let [end, own_boot, memory_mib, cpus] = std::array::from_fn(|at| u32::from_le_bytes(words[at]));
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let name = std::str::from_utf8(&name[..length]).map_err(|error| format!("a trial's name: {error}"))?;
    let expected = match end {
        trial_end::RETURNS => Expected::Returns,
        trial_end::PANICS => Expected::Panics,
        other => return Err(format!("trial {name}: unknown end {other}")),
    };
    let wish = |number: u32| (number != 0).then_some(number);
    Ok(KernelTrial {
        name: name.to_owned(),
        expected,
        // After a panic there is no machine left for the next one.
        own_boot: own_boot != 0 || expected == Expected::Panics,
        shape: Shape {
            memory_mib: wish(memory_mib),
            cpus: wish(cpus),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Expected, Shape, TRIAL_RECORD_SIZE, decode, may_match};

    fn record(name: &str, words: [u32; 4]) -> Vec<u8> {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(96, 0);
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.resize(TRIAL_RECORD_SIZE, 0xff);
        bytes
    }

    #[test]
    fn records_become_trials() {
        let data = [
            record("buddy::merges", [0; 4]),
            record("panic::reports", [1, 0, 64, 2]),
        ]
        .concat();
        let trials = decode(&data).expect("two whole records");
        assert_eq!(trials[0].name, "buddy::merges");
        assert_eq!(
            (trials[0].expected, trials[0].own_boot),
            (Expected::Returns, false)
        );
        assert_eq!(trials[0].shape, Shape::default());
        assert_eq!((trials[1].expected, trials[1].own_boot), (Expected::Panics, true));
        assert_eq!(
            trials[1].shape,
            Shape {
                memory_mib: Some(64),
                cpus: Some(2)
            }
        );
    }

    #[test]
    fn half_a_record_is_refused() {
        assert!(decode(&record("a", [0; 4])[..100]).is_err());
        assert!(decode(&record("a", [7, 0, 0, 0])).is_err_and(|message| message.contains("unknown end")));
    }

    #[test]
    fn a_filter_is_looked_for_in_the_sources() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(may_match(sources, "decode_rec"));
        assert!(may_match(sources, "tests::ledg"), "file names count");
        let nowhere = ["zzz", "nowhere"].join("_");
        assert!(!may_match(sources, &nowhere));
        assert!(
            may_match(Path::new("/does/not/exist"), &nowhere),
            "what cannot be read is not ruled out"
        );
    }
}
