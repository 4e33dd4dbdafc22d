//! Makes the type names in an object's BTF ones that the kernel takes.
//!
//! Rust's names have angle brackets and colons in them. The linker replaces those of structs and functions but not those of
//! unions, and one bad name makes the kernel refuse all of the types. Without them it does not know global functions,
//! and walks each of them again for every state of every caller.

use std::ops::Range;

use object::{Object as _, ObjectSection as _, read::elf::ElfFile64};

/// Kinds of `struct btf_type` (the kernel's `include/uapi/linux/btf.h`).
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Bytes of `struct btf_type`, and of its name's offset in the strings.
const TYPE_LENGTH: usize = 12;

/// Replaces, in place, what the kernel does not take in names of structs and unions.
pub(crate) fn sanitize(mut object: Vec<u8>) -> Result<Vec<u8>, String> {
    let section = {
        let file = ElfFile64::<object::Endianness>::parse(&*object).map_err(|error| error.to_string())?;
        let section = file.section_by_name(".BTF").ok_or("it has no .BTF section")?;
        let (start, length) = section.file_range().ok_or("its .BTF section has no bytes")?;
        start as usize..(start + length) as usize
    };
    let btf = object.get_mut(section).ok_or("its .BTF section ends behind the file")?;
    sanitize_btf(btf).ok_or("its .BTF section ends before its types do")?;
    Ok(object)
}

fn sanitize_btf(btf: &mut [u8]) -> Option<()> {
    let header = word(btf, 4)? as usize;
    let mut at = header + word(btf, 8)? as usize;
    let end = at + word(btf, 12)? as usize;
    let strings = header + word(btf, 16)? as usize;
    while at < end {
        let (name, info) = (word(btf, at)? as usize, word(btf, at + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if name != 0 && matches!(kind, STRUCT | UNION) {
            let name = name_range(btf, strings + name)?;
            for byte in btf.get_mut(name)? {
                if !byte.is_ascii_alphanumeric() && *byte != b'_' {
                    *byte = b'_';
                }
            }
        }
        at += TYPE_LENGTH + trailing_length(kind, members)?;
    }
    Some(())
}

/// Bytes of a string without its end.
fn name_range(btf: &[u8], start: usize) -> Option<Range<usize>> {
    let length = btf.get(start..)?.iter().position(|byte| *byte == 0)?;
    Some(start..start + length)
}

/// What follows a type of this kind.
fn trailing_length(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Members; sections; 64-bit enumerators.
        STRUCT | UNION | 15 | 19 => members * 12,
        // Enumerators; parameters.
        6 | 13 => members * 8,
        // Pointers, forwards, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
