//! Who a node is: an ed25519 key, and the short form people read.

use std::{fmt, str::FromStr};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// A node's name: its ed25519 public key. The same bytes are its libp2p peer id and its iroh endpoint id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub [u8; 32]);

impl NodeId {
    /// The whole key as text: for allow-lists. [`Display`](fmt::Display) writes only its beginning.
    pub fn key(&self) -> String {
        data_encoding::BASE32_NOPAD.encode(&self.0).to_lowercase()
    }

    /// True if `signature` over `message` was made with this node's key. Strict: keys of small order and malleable signatures fail.
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }
}

impl fmt::Display for NodeId {
    /// The first ten base32 characters: enough to tell peers apart on a screen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key()[..10])
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no node's key.
#[derive(Debug, thiserror::Error)]
#[error("a node's key is 52 letters and digits, as `paris-node init` prints it, and {0:?} is not")]
pub struct NotAKey(String);

impl FromStr for NodeId {
    type Err = NotAKey;

    /// Reads what [`NodeId::key`] writes.
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let bytes = data_encoding::BASE32_NOPAD.decode(text.to_uppercase().as_bytes()).ok();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(|| NotAKey(text.to_owned()))
    }
}

/// A node's secret key.
pub struct Keypair(SigningKey);

impl Keypair {
    /// The key that a 32-byte secret stands for.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The public half.
    pub fn id(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_as_text_and_a_part_of_it_is_none() {
        let node = Keypair::from_secret(&[7; 32]).id();
        assert_eq!(node.key().parse::<NodeId>().unwrap(), node);
        assert!(node.to_string().parse::<NodeId>().is_err() && "".parse::<NodeId>().is_err());
    }
}
