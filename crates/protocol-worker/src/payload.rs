//! Reading and writing the fields of a payload.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::frame::{DecodeError, EncodeError};

/// Reads a payload from its start to its end.
///
/// Lengths are compared with what is there before anything is reserved for them.
pub(crate) struct Reader(Bytes);

impl Reader {
    pub(crate) fn new(payload: Bytes) -> Self {
        Self(payload)
    }

    fn need(&self, bytes: usize) -> Result<(), DecodeError> {
        if self.0.len() < bytes { Err(DecodeError::Truncated) } else { Ok(()) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.need(2)?;
        Ok(self.0.get_u16())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.need(4)?;
        Ok(self.0.get_u32())
    }

    pub(crate) fn string(&mut self) -> Result<String, DecodeError> {
        let length = usize::try_from(self.u32()?).map_err(|_| DecodeError::Truncated)?;
        self.need(length)?;
        let text = std::str::from_utf8(&self.0[..length]).map_err(|_| DecodeError::Utf8)?.into();
        self.0.advance(length);
        Ok(text)
    }

    pub(crate) fn pairs(&mut self) -> Result<Vec<(String, String)>, DecodeError> {
        let count = usize::from(self.u16()?);
        // Each pair takes at least its two lengths.
        self.need(count * 8)?;
        (0..count).map(|_| Ok((self.string()?, self.string()?))).collect()
    }

    /// Everything that is left, as bytes.
    pub(crate) fn rest(self) -> Bytes {
        self.0
    }

    /// Everything that is left, as text.
    pub(crate) fn rest_text(self) -> Result<String, DecodeError> {
        String::from_utf8(self.0.into()).map_err(|_| DecodeError::Utf8)
    }

    /// Checks that nothing is left.
    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}

pub(crate) fn put_string(out: &mut BytesMut, text: &str) -> Result<(), EncodeError> {
    out.put_u32(u32::try_from(text.len()).map_err(|_| EncodeError::TooLarge)?);
    out.put_slice(text.as_bytes());
    Ok(())
}

pub(crate) fn put_pairs(out: &mut BytesMut, pairs: &[(String, String)]) -> Result<(), EncodeError> {
    out.put_u16(u16::try_from(pairs.len()).map_err(|_| EncodeError::TooLarge)?);
    for (name, value) in pairs {
        put_string(out, name)?;
        put_string(out, value)?;
    }
    Ok(())
}
