//! Pictures on one sheet, as a PNG file.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use image::{ImageFormat, Rgb, RgbImage};

use crate::whole_file::write_whole;

/// Longest side of a sheet, in pixels.
const SIDE_MAX: usize = 1 << 15;

/// Why a sheet can't be drawn or written.
#[derive(Debug, thiserror::Error)]
pub enum GridError {
    /// The pictures have another shape than `[batch, 3, height, width]`.
    #[error("can't draw pictures: {0}")]
    Pictures(#[from] candle_core::Error),
    /// Nothing to draw, or more than a sheet holds.
    #[error("a sheet of {width} x {height} pixels can't be drawn; 1 to {SIDE_MAX} a side are possible")]
    Size {
        /// Width it would have.
        width: usize,
        /// Height it would have.
        height: usize,
    },
    /// Writing failed.
    #[error("can't write {path}: {error}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        error: image::ImageError,
    },
}

/// How pictures are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Pictures in a row, at least 1.
    pub columns: usize,
    /// White pixels around each picture, after scaling.
    pub margin: usize,
    /// Each pixel becomes a square of this side, at least 1; small pictures stay sharp.
    pub scale: usize,
}

impl Grid {
    /// About as many rows as columns, two pixels of margin, small pictures scaled to at least 128 pixels.
    pub fn fitting(pictures: usize, side: usize) -> Self {
        let columns = (1..).find(|columns| columns * columns >= pictures).unwrap_or(1);
        Self { columns, margin: 2, scale: 128usize.div_ceil(side.max(1)) }
    }

    /// Draws pictures `[batch, 3, height, width]`; values outside -1..1 are clipped, what is no number is black.
    pub fn draw(&self, pictures: &Tensor) -> Result<RgbImage, GridError> {
        let (batch, channels, height, width) = pictures.dims4()?;
        if channels != 3 {
            Err(candle_core::Error::Msg(format!("{channels} channels instead of 3")))?;
        }
        let (columns, scale) = (self.columns.clamp(1, batch.max(1)), self.scale.max(1));
        let extent = |count: usize, side: usize| {
            side.saturating_mul(scale).saturating_add(self.margin).saturating_mul(count).saturating_add(self.margin)
        };
        let (sheet_width, sheet_height) = (extent(columns, width), extent(batch.div_ceil(columns), height));
        if batch * height * width == 0 || sheet_width.max(sheet_height) > SIDE_MAX {
            return Err(GridError::Size { width: sheet_width, height: sheet_height });
        }
        let values = pictures.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut sheet = RgbImage::from_pixel(sheet_width as u32, sheet_height as u32, Rgb([255; 3]));
        for (index, picture) in values.chunks_exact(3 * height * width).enumerate() {
            let left = self.margin + index % columns * (width * scale + self.margin);
            let top = self.margin + index / columns * (height * scale + self.margin);
            for y in 0..height * scale {
                for x in 0..width * scale {
                    let at = y / scale * width + x / scale;
                    let colour = [0, 1, 2].map(|channel| byte(picture[channel * height * width + at]));
                    sheet.put_pixel((left + x) as u32, (top + y) as u32, Rgb(colour));
                }
            }
        }
        Ok(sheet)
    }

    /// Draws pictures into a PNG file. The file is there whole or not at all; its folder is made if it is not there.
    pub fn write_png(&self, path: &Path, pictures: &Tensor) -> Result<(), GridError> {
        let sheet = self.draw(pictures)?;
        let fail = |error: image::ImageError| GridError::Write { path: path.to_owned(), error };
        let mut png = Cursor::new(Vec::new());
        sheet.write_to(&mut png, ImageFormat::Png).map_err(fail)?;
        write_whole(path, &png.into_inner()).map_err(|error| fail(error.into()))
    }
}

/// -1..1 to 0..=255, the inverse of how pictures are read.
fn byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_stand_in_rows_with_margins_and_sharp_pixels() {
        let values: Vec<f32> = [-1.0, 1.0, 5.0].iter().flat_map(|value| [*value; 12]).collect();
        let pictures = Tensor::from_vec(values, (3, 3, 2, 2), &Device::Cpu).unwrap();
        let sheet = Grid { columns: 2, margin: 1, scale: 3 }.draw(&pictures).unwrap();
        assert_eq!(sheet.dimensions(), (15, 15));
        assert_eq!(sheet.get_pixel(0, 0).0, [255; 3]);
        assert!((1..7).all(|i| sheet.get_pixel(i, i).0 == [0; 3]));
        assert_eq!(sheet.get_pixel(8, 1).0, [255; 3]);
    }

    #[test]
    fn a_written_file_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sheet.png");
        let pictures = Tensor::full(0.0f32, (2, 3, 4, 4), &Device::Cpu).unwrap();
        let grid = Grid::fitting(2, 4);
        grid.write_png(&path, &pictures).unwrap();
        assert_eq!(image::open(&path).unwrap().into_rgb8(), grid.draw(&pictures).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn impossible_sheets_are_refused() {
        let grid = Grid { columns: 1, margin: 0, scale: usize::MAX };
        assert!(matches!(
            grid.draw(&Tensor::full(0f32, (1, 3, 4, 4), &Device::Cpu).unwrap()),
            Err(GridError::Size { .. })
        ));
        assert!(Grid::fitting(1, 4).draw(&Tensor::full(0f32, (1, 1, 4, 4), &Device::Cpu).unwrap()).is_err());
        assert!(
            Grid::fitting(1, 4)
                .write_png(Path::new("/proc/no/such/x.png"), &Tensor::full(0f32, (1, 3, 4, 4), &Device::Cpu).unwrap())
                .is_err()
        );
    }
}
