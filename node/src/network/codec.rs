//! The frame of a request and of its answer: a length (four bytes, little-endian) and so many bytes, within a limit.
//!
//! The length is there because the end of a stream proves nothing: a peer that drops a question or dies in the middle of
//! an answer ends its stream as orderly as one that is done. What the bytes mean is the protocol's business.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response;

/// The largest request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// The largest response, in bytes.
pub const RESPONSE_BYTES_MAX: usize = 1024 * 1024;

/// Reads and writes length-limited byte strings.
#[derive(Clone, Default)]
pub(super) struct BoundedCodec;

impl request_response::Codec for BoundedCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, stream: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read_frame(stream, REQUEST_BYTES_MAX).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, stream: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read_frame(stream, RESPONSE_BYTES_MAX).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, stream: &mut T, request: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_frame(stream, &request).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, stream: &mut T, response: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_frame(stream, &response).await
    }
}

/// Reads one frame. The buffer grows with what arrives, not with what is promised.
async fn read_frame<T: AsyncRead + Unpin + Send>(stream: &mut T, limit: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > limit {
        let reason = format!("the peer announces {length} bytes, {limit} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer stopped in the middle of a message"));
    }
    Ok(bytes)
}

/// Writes one frame.
async fn write_frame<T: AsyncWrite + Unpin + Send>(stream: &mut T, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_all(bytes).await
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        block_on(write_frame(&mut frame, bytes)).unwrap();
        frame
    }

    fn read(frame: &[u8]) -> Result<Vec<u8>, io::ErrorKind> {
        block_on(read_frame(&mut &frame[..], 8)).map_err(|error| error.kind())
    }

    #[test]
    fn the_limit_itself_is_allowed_and_one_more_is_not() {
        assert_eq!(read(&frame(&[1; 8])), Ok(vec![1; 8]));
        assert_eq!(read(&frame(&[1; 9])), Err(io::ErrorKind::InvalidData));
        assert_eq!(read(&frame(&[])), Ok(vec![]));
    }

    #[test]
    fn a_stream_that_ends_early_is_no_message() {
        let whole = frame(&[1; 8]);
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), Err(io::ErrorKind::UnexpectedEof), "cut after {end} bytes");
        }
    }
}
