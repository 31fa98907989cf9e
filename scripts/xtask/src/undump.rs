//! `undump`: the console's armoured text → the bytes it stands for.
//!
//! ```text
//!   -----BEGIN DUMP kpageflags 1048576-----        name, number of bytes
//!   KNgEAAAAAAAo2AQAAAAAAA...                      base64, 76 columns
//!   -----END DUMP kpageflags 1c291ca3-----         name, CRC-32 of the bytes
//! ```
//! What stands around the block (prompts, the log) is passed over, so a whole recorded session can be fed in.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
};

use crate::{Outcome, none_left};

const BEGIN: &str = "-----BEGIN DUMP ";
const END: &str = "-----END DUMP ";
const DASHES: &str = "-----";

/// A block that was read and checked.
#[derive(Debug, PartialEq, Eq)]
struct Dump {
    name: String,
    bytes: Vec<u8>,
}

/// `undump [INPUT [OUTPUT]]`; `-` is standard input.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    none_left(arguments.get(2..).unwrap_or_default())?;
    let input = arguments.first().map_or("-", String::as_str);
    let text = if input == "-" {
        from_stdin()
    } else {
        fs::read(input)
    };
    let text = text.map_err(|error| format!("cannot read {input}: {error}"))?;
    let dump = parse(&String::from_utf8_lossy(&text))?;
    let output = arguments
        .get(1)
        .map_or_else(|| PathBuf::from(format!("{}.bin", dump.name)), PathBuf::from);
    fs::write(&output, &dump.bytes).map_err(|error| format!("cannot write {}: {error}", output.display()))?;
    eprintln!(
        "xtask: {} bytes of {} in {}",
        dump.bytes.len(),
        dump.name,
        output.display()
    );
    Ok(())
}

fn from_stdin() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).map(|_| bytes)
}

/// Finds the first block of `text` and checks it.
fn parse(text: &str) -> Result<Dump, String> {
    // A prompt may stand before BEGIN on its line; a terminal's recording ends lines with \r\n.
    let begin = text
        .find(BEGIN)
        .ok_or("there is no `-----BEGIN DUMP` line in the input")?;
    let mut lines = text[begin..].lines().map(|line| line.trim_end_matches('\r'));
    let (name, length) = header(lines.next().unwrap_or_default(), BEGIN)?;
    let length: usize = length
        .parse()
        .map_err(|_| format!("`{length}` is not a number of bytes"))?;
    let mut armour = String::new();
    for line in lines {
        if line.starts_with(END) {
            let bytes = decode_base64(&armour)?;
            return check(name, length, bytes, header(line, END)?);
        }
        armour.push_str(line);
    }
    Err(format!(
        "the dump of {name} has no END line: the text was cut off"
    ))
}

/// The two words of a BEGIN or END line.
fn header<'a>(line: &'a str, start: &str) -> Result<(&'a str, &'a str), String> {
    let inside = line
        .strip_prefix(start)
        .and_then(|rest| rest.strip_suffix(DASHES));
    let words = inside.and_then(|inside| inside.split_once(' '));
    let usable = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    words
        .filter(|(name, _)| usable(name))
        .ok_or_else(|| format!("a damaged line: `{line}`"))
}

fn check(name: &str, length: usize, bytes: Vec<u8>, end: (&str, &str)) -> Result<Dump, String> {
    let (end_name, crc) = end;
    if end_name != name {
        return Err(format!("the dump of {name} ends as one of {end_name}"));
    }
    if bytes.len() != length {
        return Err(format!(
            "{name}: {length} bytes were announced, {} came",
            bytes.len()
        ));
    }
    let announced = u32::from_str_radix(crc, 16).map_err(|_| format!("`{crc}` is not a CRC-32"))?;
    let found = crc32(&bytes);
    if announced != found {
        return Err(format!(
            "{name}: CRC-32 {announced:08x} was announced, the bytes have {found:08x}"
        ));
    }
    Ok(Dump {
        name: name.to_owned(),
        bytes,
    })
}

/// Decodes standard base64 with padding.
fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    let data = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - data.len() > 2 {
        return Err(format!(
            "{} characters are no whole base64: some were lost",
            text.len()
        ));
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in data.as_bytes().chunks(4) {
        let mut word = 0_u32;
        for symbol in group {
            word = (word << 6) | value_of(*symbol).ok_or_else(|| not_base64(*symbol))?;
        }
        word <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&word.to_be_bytes()[1..group.len()]);
    }
    Ok(bytes)
}

fn not_base64(symbol: u8) -> String {
    format!(
        "`{}` is not a base64 character: other text got into the dump",
        symbol.escape_ascii()
    )
}

fn value_of(symbol: u8) -> Option<u32> {
    Some(u32::from(match symbol {
        b'A'..=b'Z' => symbol - b'A',
        b'a'..=b'z' => symbol - b'a' + 26,
        b'0'..=b'9' => symbol - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

/// CRC-32 as of zip, gzip and PNG (reflected polynomial 0xedb88320).
fn crc32(bytes: &[u8]) -> u32 {
    let table: [u32; 256] = std::array::from_fn(|index| {
        (0..8).fold(u32::try_from(index).unwrap_or(0), |word, _| {
            (word >> 1) ^ (0xedb8_8320 * (word & 1))
        })
    });
    !bytes.iter().fold(!0, |crc, byte| {
        (crc >> 8) ^ table[usize::from(crc.to_le_bytes()[0] ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::{crc32, decode_base64, parse};

    const GOOD: &str =
        "> dump x\n-----BEGIN DUMP x 9-----\nMTIzNDU2\nNzg5\n-----END DUMP x cbf43926-----\n> ";

    #[test]
    fn the_crc_is_the_common_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn base64_of_every_length() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
        ] {
            assert_eq!(decode_base64(text).as_deref(), Ok(bytes.as_bytes()));
        }
        assert!(
            decode_base64("Zm9").is_err() && decode_base64("Z===").is_err() && decode_base64("Zm!v").is_err()
        );
    }

    #[test]
    fn a_block_is_found_between_other_text() {
        let dump = parse(GOOD).expect("a whole block");
        assert_eq!(
            (dump.name.as_str(), dump.bytes.as_slice()),
            ("x", b"123456789".as_slice())
        );
        assert_eq!(
            parse(&GOOD.replace('\n', "\r\n")).as_ref(),
            Ok(&dump),
            "as a terminal records it"
        );
    }

    #[test]
    fn damage_is_named() {
        let failure = |text: &str| parse(text).expect_err("it is damaged");
        assert!(failure("nothing here").contains("BEGIN"));
        assert!(failure(&GOOD.replace("END", "ENT")).contains("cut off"));
        assert!(failure(&GOOD.replace(" 9-", " 10-")).contains("10 bytes were announced, 9 came"));
        assert!(failure(&GOOD.replace("MTIz", "MTIy")).contains("CRC-32"));
        assert!(failure(&GOOD.replace("MTIz", "MTI")).contains("lost"));
        assert!(failure(&GOOD.replace("MTIz", "lo: ")).contains("not a base64"));
        assert!(failure(&GOOD.replace("END DUMP x", "END DUMP y")).contains("ends as one of y"));
        assert!(failure(&GOOD.replace("DUMP x", "DUMP ../x")).contains("damaged line"));
    }
}
