//! Whatever the other side sends is decoded or refused, and what is decoded has one encoding.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use protocol_worker::frame::{Decoder, FromHost, FromWorker, Message};

fn check<M: Message>(bytes: &[u8]) {
    let mut decoder = Decoder { buffer: BytesMut::from(bytes) };
    let mut rest = bytes;
    while let Ok(Some(frame)) = decoder.next_frame::<M>() {
        let mut again = BytesMut::new();
        frame.message.encode(frame.call, &mut again).expect("what was decoded can be encoded");
        assert_eq!(again, rest[..again.len()]);
        rest = &rest[again.len()..];
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<FromWorker>(bytes);
    check::<FromHost>(bytes);
});
