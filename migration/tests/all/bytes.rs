//! Streams as bytes, typed here again from the format's documents: nothing is taken from the writer.

/// A record: head, body, padding.
pub fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = head(kind, u32::try_from(body.len()).unwrap());
    bytes.extend(body);
    bytes.resize(bytes.len().div_ceil(8) * 8, 0);
    bytes
}

pub fn head(kind: u32, length: u32) -> Vec<u8> {
    [kind.to_le_bytes(), length.to_le_bytes()].concat()
}

pub fn libxl_header() -> Vec<u8> {
    let mut bytes = b"LibxlFmt".to_vec();
    bytes.extend([0, 0, 0, 2, 0, 0, 0, 0]);
    bytes
}

/// Both headers of an image of an HVM domain.
pub fn image(version: u8) -> Vec<u8> {
    let mut bytes = vec![0xff; 8];
    bytes.extend(b"XENF");
    bytes.extend([0, 0, 0, version]);
    bytes.extend([0; 8]);
    bytes.extend([2, 0, 0, 0, 12, 0, 0, 0]);
    bytes.extend([0; 8]);
    bytes
}

/// PAGE_DATA with the given entries; each page with data is of one byte.
pub fn pages(entries: &[u64]) -> Vec<u8> {
    let with_data = entries.iter().filter(|e| **e >> 60 < 13).count();
    record(1, &page_body(entries, with_data))
}

pub fn page_body(entries: &[u64], with_data: usize) -> Vec<u8> {
    let mut body = u32::try_from(entries.len()).unwrap().to_le_bytes().to_vec();
    body.extend([0; 4]);
    body.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
    body.resize(body.len() + 4096 * with_data, 0x5a);
    body
}

/// EMULATOR_XENSTORE_DATA of one of ours.
pub fn names(index: u32, text: &[u8]) -> Vec<u8> {
    record(2, &[&[2, 0, 0, 0], &index.to_le_bytes(), text].concat())
}

/// EMULATOR_CONTEXT of one of ours.
pub fn context(index: u32, blob: &[u8]) -> Vec<u8> {
    record(3, &[&[2, 0, 0, 0], &index.to_le_bytes(), blob].concat())
}

/// A blob of one section.
pub fn blob(kind: u32, bytes: &[u8]) -> Vec<u8> {
    let mut blob = b"TIDEMARK".to_vec();
    blob.extend([1, 0, 0, 0, 1, 0, 0, 0]);
    blob.extend(record(kind, bytes));
    blob
}

/// A libxl stream up to where the image's own records start.
pub fn opened(version: u8) -> Vec<u8> {
    let mut bytes = libxl_header();
    bytes.extend(names(0, b"guest\0a guest\0"));
    bytes.extend(record(1, b""));
    bytes.extend(image(version));
    if version == 3 {
        bytes.extend(record(0x10, b""));
    }
    bytes
}

/// Reads the text that fixtures are kept as.
pub fn from_hex(text: &str) -> Vec<u8> {
    let words = text
        .lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(str::split_whitespace);
    let mut bytes = Vec::new();
    for word in words {
        let (digits, count) = word.split_once('*').unwrap_or((word, "1"));
        let byte = u8::from_str_radix(digits, 16).unwrap();
        bytes.extend(std::iter::repeat_n(byte, count.parse().unwrap()));
    }
    bytes
}
