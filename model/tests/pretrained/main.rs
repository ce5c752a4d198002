//! Pretrained encoders against the libraries that they come from: on small made-up weights always, on the real ones where they are at hand.

mod features;
mod files;
mod fixture;
mod latents;
mod real;
mod text;
mod vae;
