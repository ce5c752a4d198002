//! An encoder on a thread of its own, for many to ask: candle's stream and handles of a GPU are the thread's that opened it ([`DeviceChoice::open`]).
//!
//! [`DeviceChoice::open`]: crate::device::DeviceChoice::open

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use candle_core::{Device, Error, Result};

use super::TextEncoder;
use crate::{batch::Text, pretrained::Identity};

/// An encoder whose work is done on one thread, whoever asks. The thread ends with it.
pub struct OwnThreadText {
    identity: Identity,
    tokens: usize,
    width: usize,
    requests: Sender<Request>,
}

/// Captions, and where their vectors go, in host memory.
struct Request {
    captions: Vec<String>,
    answer: Sender<Result<Text>>,
}

impl OwnThreadText {
    /// Starts the thread and loads the encoder there: `load`'s error is the inner one, and its panic goes on here.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start<E: Send + 'static>(
        load: impl FnOnce() -> std::result::Result<Arc<dyn TextEncoder>, E> + Send + 'static,
    ) -> std::io::Result<std::result::Result<Self, E>> {
        let (requests, asked) = channel();
        let (loaded, wait) = channel();
        let thread = thread::Builder::new().name("text-encoder".to_owned()).spawn(move || match load() {
            Ok(encoder) => {
                let shape = (encoder.identity(), encoder.tokens(), encoder.width());
                // Who waits for it is there, or nobody asks later.
                let _ = loaded.send(Ok(shape));
                serve(&*encoder, asked);
            }
            Err(error) => drop(loaded.send(Err(error))),
        })?;
        match wait.recv() {
            Ok(shape) => Ok(shape.map(|(identity, tokens, width)| Self { identity, tokens, width, requests })),
            Err(_) => match thread.join() {
                Err(panic) => resume_unwind(panic),
                Ok(()) => unreachable!("the thread says how loading went, or panics"),
            },
        }
    }
}

/// Answers until nobody is left who could ask.
fn serve(encoder: &dyn TextEncoder, asked: Receiver<Request>) {
    for Request { captions, answer } in asked {
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        // A caption that makes it panic is no reason to answer nobody any more.
        let text = catch_unwind(AssertUnwindSafe(|| encoder.encode(&captions, &Device::Cpu)));
        let panicked = |_| Err(Error::msg("the text encoder panicked: the log says where"));
        // Who asked may be gone.
        let _ = answer.send(text.unwrap_or_else(panicked));
    }
}

impl TextEncoder for OwnThreadText {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn width(&self) -> usize {
        self.width
    }

    fn encode(&self, captions: &[&str], device: &Device) -> Result<Text> {
        let gone = || Error::msg("the text encoder's thread has ended");
        let (answer, encoded) = channel();
        let captions = captions.iter().map(|caption| (*caption).to_owned()).collect();
        self.requests.send(Request { captions, answer }).map_err(|_| gone())?;
        encoded.recv().map_err(|_| gone())??.to_device(device)
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{current, scope};

    use super::*;
    use crate::text::watched::{TEXT, WatchedText};

    /// Encodes on the thread that loaded it and on no other, and not everything.
    fn start() -> OwnThreadText {
        let load = || {
            let own = current().id();
            let watch = move |captions: &[&str]| {
                assert_eq!(current().id(), own);
                match captions {
                    ["unknown"] => candle_core::bail!("a caption that cannot be encoded"),
                    ["deadly"] => panic!("a fault"),
                    _ => Ok(()),
                }
            };
            Ok::<_, ()>(Arc::new(WatchedText(watch)) as _)
        };
        OwnThreadText::start(load).unwrap().unwrap()
    }

    #[test]
    fn many_threads_are_answered_by_one() {
        let encoder = start();
        assert_eq!((encoder.identity(), encoder.tokens(), encoder.width()), (TEXT.identity(), 3, 4));
        scope(|scope| {
            for number in 0..4 {
                let encoder = &encoder;
                scope.spawn(move || {
                    let captions = [format!("caption {number}"), "a dog".to_owned()];
                    let captions = captions.each_ref().map(String::as_str);
                    let numbers = |text: Text| text.tokens.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    let (found, expected) =
                        (encoder.encode(&captions, &Device::Cpu), TEXT.encode(&captions, &Device::Cpu));
                    assert_eq!(numbers(found.unwrap()), numbers(expected.unwrap()));
                });
            }
        });
    }

    #[test]
    fn errors_are_told_to_who_asked() {
        let encoder = start();
        let failed = |caption| encoder.encode(&[caption], &Device::Cpu).map(|_| ()).unwrap_err().to_string();
        assert!(failed("unknown").contains("cannot be encoded"));
        assert!(failed("deadly").contains("panicked"));
        encoder.encode(&["known"], &Device::Cpu).unwrap();
        assert_eq!(OwnThreadText::start(|| Err("no such file")).unwrap().map(|_| ()), Err("no such file"));
    }
}
