//! Frames, good and bad: examples in tests/corpus/frames, and chance.

use super::*;
use proptest::prelude::*;

/// A content header with the two properties that matter most, beside some of other types.
fn header(event_type: &[u8], message_id: &[u8]) -> Vec<u8> {
    let short = |text: &[u8]| [&[u8::try_from(text.len()).expect("short")], text].concat();
    let flags = (1_u16 << 13) | (1 << 12) | (1 << 7) | (1 << 6) | (1 << 5);
    let payload = [
        &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9][..],
        &flags.to_be_bytes(),
        &[0, 0, 0, 3, 0xff, 0xfe, 0xfd],
        &[2],
        &short(message_id),
        &[0xff; 8],
        &short(event_type),
    ]
    .concat();
    frame(CONTENT_HEADER, &payload)
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&[kind, 0, 1], &size[..], payload, &[0xce]].concat()
}

fn repaired(mut frame: Vec<u8>) -> Vec<u8> {
    repair(&mut frame);
    frame
}

#[test]
fn bytes_that_are_not_utf8_are_replaced_one_by_one() {
    let bad = header(b"caf\xe9.paid", b"\xf0\x9f\x98");
    assert_eq!(repaired(bad), header(b"caf\x1a.paid", b"\x1a\x1a\x1a"));
}

#[test]
fn headers_of_text_that_is_not_utf8_are_replaced_too_and_those_after_them_stay() {
    let table = |name: &[u8], text: &[u8]| {
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).expect("small").to_be_bytes();
        let short = |text: &[u8]| [&[u8::try_from(text.len()).expect("short")], text].concat();
        let entries = [
            &short(b"bytes")[..],
            &[b'x', 0, 0, 0, 1, 0xff],
            &short(b"list"),
            &[b'A', 0, 0, 0, 7, b'S', 0, 0, 0, 2, 0xff, 0xfe],
            &short(name),
            b"S",
            &size(text),
            text,
            &short(b"n"),
            &[b'I', 0, 0, 0, 7],
        ]
        .concat();
        let flags = (1_u16 << 13).to_be_bytes();
        frame(CONTENT_HEADER, &[&[0; 12][..], &flags, &size(&entries), &entries].concat())
    };
    let good = table(b"account", "größe".as_bytes());
    assert_eq!(repaired(good.clone()), good);
    assert_eq!(repaired(table(b"account", b"gr\xf6\xdfe")), table(b"account", b"gr\x1a\x1ae"));
    assert_eq!(repaired(table(b"\xe9", b"a")), table(b"\x1a", b"a"));
}

#[test]
fn a_routing_key_is_repaired_too() {
    let deliver = |key: &[u8]| {
        let fixed = [&[0, 60, 0, 60, 1, b'c'][..], &[0; 9], &[0, 2], key].concat();
        frame(METHOD, &fixed)
    };
    assert_eq!(repaired(deliver(b"a\xff")), deliver(b"a\x1a"));
    let other_method = frame(METHOD, &[0, 60, 0, 80, 0xff]);
    assert_eq!(repaired(other_method.clone()), other_method);
}

/// The frames of `tests/corpus/frames`, by name: a good one passes as it is.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/frames");
    let files = std::fs::read_dir(folder).expect("the corpus");
    let read = |file: io::Result<std::fs::DirEntry>| {
        let path = file.expect("a file").path();
        let digits = std::fs::read_to_string(&path).expect("hexadecimal");
        let digits: Vec<u8> =
            digits.bytes().filter_map(|c| Some(char::from(c).to_digit(16)? as u8)).collect();
        let bytes = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        (path.file_stem().expect("a name").to_string_lossy().into_owned(), bytes)
    };
    files.map(read).collect()
}

/// What comes through in pieces of these sizes.
fn through(bytes: &[u8], sizes: &[usize]) -> Vec<u8> {
    struct Pieces<'a>(&'a [u8], std::iter::Cycle<std::slice::Iter<'a, usize>>);
    impl Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let size = self.1.next().map_or(1, |size| *size).min(out.len());
            self.0.read(&mut out[..size])
        }
    }
    let mut stream = RepairedStream::new(Pieces(bytes, sizes.iter().cycle()));
    let mut out = Vec::new();
    let (mut piece, mut sizes) = ([0; 64], sizes.iter().rev().cycle());
    loop {
        let size = sizes.next().map_or(1, |size| (*size).min(piece.len()));
        match stream.read(&mut piece[..size]).expect("reading from memory") {
            0 => return out,
            read => out.extend_from_slice(&piece[..read]),
        }
    }
}

#[test]
fn each_example_of_a_frame_is_what_its_name_says() {
    let examples = corpus();
    assert!(examples.len() > 10);
    for (name, frame) in examples {
        let after = repaired(frame.clone());
        assert_eq!(after.len(), frame.len(), "{name}");
        assert_eq!(after == frame, name.starts_with("good-"), "{name}");
        assert_eq!(repaired(after.clone()), after, "{name}: repaired twice");
        if frame_size(&frame) != Some(frame.len()) {
            continue;
        }
        // Cut off anywhere, what came before the end is not told.
        for cut in 0..frame.len() {
            let part = through(&frame[..cut], &[7]);
            let no_frame = !KINDS.contains(&frame[0]);
            assert_eq!(part.len(), if no_frame { cut } else { 0 }, "{name} cut at {cut}");
        }
    }
}

/// The headers of a frame, as amiquip reads them: the name, type and value of each.
fn headers(frame: &[u8]) -> Vec<(Vec<u8>, u8, Vec<u8>)> {
    let mut payload = frame[HEAD..].to_vec();
    let mut fields = Fields(&mut payload);
    fields.take(14).expect("flags");
    let size = u32::from_be_bytes(fields.take(4).expect("a size").try_into().expect("4"));
    let mut table = Fields(fields.take(size as usize).expect("a table"));
    let mut next = || {
        let size = table.take(1)?[0];
        let name = table.take(size.into())?.to_vec();
        let kind = table.take(1)?[0];
        let size = match fixed_size(kind) {
            Some(size) => size,
            None => u32::from_be_bytes(table.take(4)?.try_into().ok()?) as usize,
        };
        Some((name, kind, table.take(size)?.to_vec()))
    };
    std::iter::from_fn(&mut next).collect()
}

#[test]
fn a_header_that_nests_too_deep_is_one_of_bytes_and_the_others_stay_as_they_are() {
    let mut count = 0;
    for (name, frame) in corpus().into_iter().filter(|(name, _)| name.contains("deep")) {
        let (before, after) = (headers(&frame), headers(&repaired(frame)));
        assert_eq!(before.len(), after.len(), "{name}");
        for ((name, kind, value), is) in before.into_iter().zip(after) {
            let within = if kind == b'A' { Within::Array } else { Within::Table };
            let is_too_deep = matches!(kind, b'A' | b'F') && nests_too_deep(&value, within);
            count += usize::from(is_too_deep);
            assert_eq!(is, (name, if is_too_deep { b'x' } else { kind }, value));
        }
    }
    assert!(count >= 4, "{count}");
}

#[test]
fn an_account_stays_whatever_other_headers_there_are() {
    let frame_of = |entries: &[&[u8]]| {
        let entries = entries.concat();
        let flags = (1_u16 << 13).to_be_bytes();
        let size = u32::try_from(entries.len()).expect("small").to_be_bytes();
        frame(CONTENT_HEADER, &[&[0; 12][..], &flags, &size, &entries].concat())
    };
    let deep = |name: &[u8], depth: usize| {
        let nested = (0..depth).fold(vec![b'V'], |inner, _| {
            let size = u32::try_from(inner.len() + 2).expect("small").to_be_bytes();
            [&[b'F'][..], &size, &[1, b'k'], &inner].concat()
        });
        [&[u8::try_from(name.len()).expect("short")], name, &nested].concat()
    };
    let acme: &[u8] = b"\x07accountS\0\0\0\x04acme";
    let (void, unset): (&[u8], &[u8]) = (b"\x07accountV", b"\x07accountS\0\0\0\0");
    let other: &[u8] = b"\x07accountS\0\0\0\x05other";
    let odd: &[u8] = b"\x07accountt\x01";
    for (entries, kind, value) in [
        (vec![acme, &deep(b"z", 40)], b'S', &b"acme"[..]),
        (vec![&deep(b"a", 40)[..], acme], b'S', b"acme"),
        (vec![acme, &deep(b"z", 9_000)], b'S', b"acme"),
        (vec![acme, void], b'S', b"acme"),
        (vec![void, acme, other], b'S', b"acme"),
        (vec![acme, unset, other, void], b'S', b"acme"),
        (vec![odd, acme], b't', b"\x01"),
    ] {
        let named = headers(&repaired(frame_of(&entries))).into_iter();
        let named: Vec<_> = named.filter(|(name, ..)| name == b"account").collect();
        assert_eq!(named, [(b"account".to_vec(), kind, value.to_vec())], "{entries:?}");
    }
    let itself = headers(&repaired(frame_of(&[&deep(b"account", 40)])));
    assert_eq!((&itself[0].0[..], itself[0].1), (&b"account"[..], b'x'));
}

proptest! {
    #[test]
    fn frames_in_any_pieces_are_the_frames_repaired_one_by_one(
        picked in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        sizes in prop::collection::vec(1_usize..40, 1..5),
    ) {
        let examples = corpus();
        let mut sent = Vec::new();
        let mut expected = Vec::new();
        for index in picked {
            let (name, mut frame) = index.get(&examples).clone();
            if name == "good-not-a-frame" {
                continue;
            }
            // Behind its head, a frame may hold anything.
            for (at, bits) in &flips {
                if frame.len() > HEAD + END {
                    let at = HEAD + at.index(frame.len() - HEAD - END);
                    frame[at] ^= bits;
                }
            }
            expected.extend(repaired(frame.clone()));
            sent.extend(frame);
        }
        prop_assert_eq!(through(&sent, &sizes), expected);
    }

    #[test]
    fn a_stream_of_anything_ends_and_grows_by_nothing(
        bytes: Vec<u8>, kind in prop::sample::select(&KINDS[..]),
        sizes in prop::collection::vec(1_usize..40, 1..5),
    ) {
        for stream in [bytes.clone(), [&[kind][..], &bytes].concat()] {
            prop_assert!(through(&stream, &sizes).len() <= stream.len());
        }
    }

    #[test]
    fn a_table_is_changed_only_where_it_nests_too_deep(
        depths in prop::collection::vec((any::<bool>(), 0_usize..2 * MAX_DEPTH), 1..4),
        // What is not UTF-8 would be replaced.
        tail in prop::collection::vec(0_u8..0x80, 0..20),
    ) {
        let entry = |(is_table, depth): &(bool, usize)| {
            (0..*depth).fold(vec![b'V'], |inner, _| {
                let inner = if *is_table { [&[1, b'k'][..], &inner].concat() } else { inner };
                let size = u32::try_from(inner.len()).expect("small").to_be_bytes();
                [&[if *is_table { b'F' } else { b'A' }][..], &size, &inner].concat()
            })
        };
        let entries = depths.iter().map(|depth| [&[1, b'n'][..], &entry(depth)].concat());
        let table = [entries.collect::<Vec<_>>().concat(), tail].concat();
        let mut after = table.clone();
        let _ = repair_headers(&mut Fields(&mut after));
        let deepest = depths.iter().map(|(_, depth)| *depth).max().unwrap_or(0);
        prop_assert_eq!(after != table, deepest > MAX_DEPTH);
        prop_assert_eq!(after.len(), table.len());
    }

    #[test]
    fn good_text_passes_as_it_is(event_type in ".{0,60}", message_id in ".{0,60}") {
        let good = header(event_type.as_bytes(), message_id.as_bytes());
        prop_assert_eq!(repaired(good.clone()), good);
    }

    #[test]
    fn no_frame_is_too_strange(kind in 1_u8..3, payload: Vec<u8>) {
        let before = frame(kind, &payload);
        let after = repaired(before.clone());
        prop_assert_eq!(after.len(), before.len());
        prop_assert_eq!(frame_size(&after), Some(before.len()));
    }
}
