"""Crops of photographs: pieces of them, mirrored or not, enlarged or not."""

import numpy as np
import pytest
import torch

from ddpm_codec.crops import ArrayCrops, PhotoCrops, VariedCrops
from ddpm_codec.data import write_image
from ddpm_codec.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


class TestPhotoCrops:
    @pytest.fixture
    def folder(self, tmp_path):
        write_image(tmp_path / "a.png", RGB)
        write_image(tmp_path / "b.png", 255 - RGB)
        write_image(tmp_path / "small.png", RGB[:4])
        (tmp_path / "broken.png").write_bytes(b"no picture")
        return tmp_path

    def test_crops_are_pieces_of_the_photographs_or_their_mirror_images(self, folder):
        crops = PhotoCrops(folder, 8).draw(50, torch.Generator().manual_seed(0))
        photographs = [RGB, 255 - RGB]
        pieces = {
            view[y : y + 8, x : x + 8].tobytes()
            for photograph in photographs
            for view in (photograph, photograph[:, ::-1])
            for y in range(5)
            for x in range(3)
        }
        drawn = {crop.tobytes() for crop in crops.permute(0, 2, 3, 1).contiguous().numpy()}
        assert drawn <= pieces
        assert len(drawn) > 20

    def test_damaged_and_small_pictures_are_skipped_and_named(self, folder):
        crops = PhotoCrops(folder, 8)
        crops.draw(50, torch.Generator().manual_seed(0))
        assert len(crops.skipped) == 2
        assert any("broken.png" in reason for reason in crops.skipped)
        assert any("small.png" in reason for reason in crops.skipped)

    def test_what_was_drawn_before_has_no_influence(self, folder):
        """A run that is resumed meets the damaged pictures anew."""
        for i in range(6):
            write_image(folder / f"c{i}.png", RGB // (i + 2))
        generator = torch.Generator().manual_seed(1)
        straight = PhotoCrops(folder, 8)
        straight.draw(40, generator)
        assert len(straight.skipped) == 2
        state = generator.get_state()
        expected = straight.draw(40, generator)
        generator.set_state(state)
        torch.testing.assert_close(PhotoCrops(folder, 8).draw(40, generator), expected)

    def test_nothing_usable_is_an_error(self, folder):
        with pytest.raises(DataError, match="64x64"):
            PhotoCrops(folder, 64).draw(1, torch.Generator())

    def test_a_small_cache_changes_nothing(self, folder):
        large = PhotoCrops(folder, 8).draw(20, torch.Generator().manual_seed(0))
        small = PhotoCrops(folder, 8, cache_bytes=1).draw(20, torch.Generator().manual_seed(0))
        torch.testing.assert_close(large, small)


class TestEnlargedCrops:
    """Of a picture whose red is x, whose green is y and whose blue is 100: an enlarged square of it
    is linear too, flatter, and begins where the square lay."""

    SIDE = 32

    def draw(self, share, count=200):
        ramp = np.arange(self.SIDE, dtype=np.uint8) * 8
        picture = np.stack(
            [*np.broadcast_arrays(ramp[None, :], ramp[:, None]), np.full((32, 32), 100)], axis=2
        ).astype(np.uint8)
        crops = VariedCrops(ArrayCrops(picture[None], self.SIDE), share)
        return crops.draw(count, torch.Generator().manual_seed(0)).double()

    def test_a_share_of_the_crops_is_enlarged_by_one_to_two(self):
        crops = self.draw(0.5, 1000)
        inside = crops[:, :, 4:-4, 4:-4]
        across = (inside[:, 0, :, -1] - inside[:, 0, :, 0]).mean(dim=1).abs() / (8 * 23)
        down = (inside[:, 1, -1] - inside[:, 1, 0]).mean(dim=1) / (8 * 23)
        torch.testing.assert_close(across, down, atol=0.02, rtol=0)
        factor = 1 / down
        assert factor.min() > 0.98
        assert 1.9 < factor.max() < 2.05
        large = factor[factor > 1.02]
        share = len(large) / 1000 / (1 - np.log2(1.02))
        assert abs(share - 0.5) < 4 * (0.25 / 1000) ** 0.5
        uniform = large.log2()  # the logarithm of the factor is uniform
        assert abs(float(uniform.mean()) - 0.51) < 4 * float(uniform.std()) / len(large) ** 0.5

    def test_squares_lie_everywhere_and_colours_stay(self):
        crops = self.draw(1.0)
        assert (crops[:, 2] == 100).all()
        assert crops[:, 1, 0].min() == 0
        assert crops[:, 1, 0].max() > 90
        assert crops[:, 1, -1].max() > 240

    def test_no_share_changes_nothing(self):
        plain = self.draw(0.0)
        assert set(plain[:, 0, 0, 0].tolist()) == {0.0, 248.0}

    def test_names_what_its_source_left_out(self, tmp_path):
        write_image(tmp_path / "a.png", RGB)
        (tmp_path / "b.png").write_bytes(b"")
        crops = VariedCrops(PhotoCrops(tmp_path, 8), 1.0, 1.0)
        crops.draw(20, torch.Generator().manual_seed(0))
        assert len(crops.skipped) == 1


class TestSubsampledCrops:
    def draw(self, share, count=400):
        rng = np.random.default_rng(1)
        pictures = rng.integers(60, 190, (4, 16, 16, 3), dtype=np.uint8)
        crops = VariedCrops(ArrayCrops(pictures, 16), subsampled=share)
        source = ArrayCrops(pictures, 16).draw(count, torch.Generator().manual_seed(0))
        return source.double(), crops.draw(count, torch.Generator().manual_seed(0)).double()

    def test_luma_stays_and_chroma_loses_its_fine_detail(self):
        source, crops = self.draw(1.0)
        luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
        before, after = (torch.einsum("c,nchw->nhw", luma, x) for x in (source, crops))
        assert float((before - after).abs().max()) < 3.0  # rounding and what RGB can't show
        chroma = [x[:, 2] - y for x, y in ((source, before), (crops, after))]
        # means of 2x2 keep a quarter of the variance of independent pixels; between them less
        assert float(chroma[1].var() / chroma[0].var()) < 0.26

    def test_a_share_of_them(self):
        source, crops = self.draw(0.3)
        changed = (source != crops).flatten(1).any(dim=1).double().mean()
        assert abs(float(changed) - 0.3) < 4 * (0.21 / 400) ** 0.5
