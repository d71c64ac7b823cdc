import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import Subset

from autoregressive_diffusion_pytorch.data.order import EndlessShuffle
from autoregressive_diffusion_pytorch.data.sequence_files import SequenceFormat, format_of
from autoregressive_diffusion_pytorch.data.sequence_folder import SequenceFolder
from autoregressive_diffusion_pytorch.data.sequences import SequenceItems, pad_sequences


def test_items_in_one_form():
    seq = torch.randn(4, 2)
    forms = (seq, seq.numpy(), (seq,), dict(sequence=seq))
    for item in SequenceItems(list(forms)):
        assert item.keys() == {"seq"}
        assert torch.equal(item["seq"], seq)
    for item in SequenceItems([(seq, 3), dict(seq=seq, label=3)]):
        assert item["labels"] == 3


def test_a_batch_is_padded_with_zeros():
    items = [dict(seq=torch.ones(n, 2), labels=torch.tensor(n)) for n in (2, 4, 1)]
    batch = pad_sequences(items)
    assert batch["lens"].tolist() == [2, 4, 1]
    assert batch["labels"].tolist() == [2, 4, 1]
    assert batch["seq"].shape == (3, 4, 2)
    assert batch["seq"].sum(dim=(1, 2)).tolist() == [4, 8, 2]
    assert "lens" not in pad_sequences(items[:1] * 2)


def test_vectors_are_padded_with_a_mask():
    items = [dict(seq=torch.ones(2, 1), cond=torch.ones(m, 3)) for m in (1, 3)]
    batch = pad_sequences(items)
    assert batch["cond"].shape == (2, 3, 3)
    assert batch["cond_mask"].tolist() == [[True, False, False], [True, True, True]]
    single = pad_sequences([dict(seq=torch.ones(2, 1), cond=torch.ones(3))] * 2)
    assert single["cond"].shape == (2, 3)
    assert "cond_mask" not in single


def test_batches_of_similar_lengths_hold_each_item_once():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 100, (203,), generator=generator).tolist()

    def padding(lengths_or_none):
        order = iter(EndlessShuffle(203, 8, seed=3, lengths=lengths_or_none))
        batches = [[index for index, _ in next(order)] for _ in range(3 * 203 // 8)]
        seen = [index for batch in batches for index in batch]
        for epoch in range(2):
            assert sorted(seen[epoch * 203 : (epoch + 1) * 203]) == list(range(203))
        spans = [
            max(lengths[i] for i in batch) - sum(lengths[i] for i in batch) / 8 for batch in batches
        ]
        return sum(spans) / len(spans), batches

    bucketed, batches = padding(lengths)
    assert bucketed < padding(None)[0] / 3
    # an order can be taken up anywhere, and processes share its batches
    later = iter(EndlessShuffle(203, 8, seed=3, start=40 * 8, lengths=lengths))
    assert [index for index, _ in next(later)] == batches[40]
    shares = [
        iter(EndlessShuffle(203, 4, seed=3, process_index=i, num_processes=2, lengths=lengths))
        for i in range(2)
    ]
    for batch in batches[:30]:
        assert [index for share in shares for index, _ in next(share)] == batch


def write(folder, ending, count=5):
    folder.mkdir(parents=True, exist_ok=True)
    seqs = [torch.randn(3 + i, 2) for i in range(count)]
    for i, seq in enumerate(seqs):
        SequenceFormat(ending, frame=2, sample_rate=8000).write(
            seq / 10 if ending == ".wav" else seq, folder / f"{i}{ending}"
        )
    return seqs


@pytest.mark.parametrize("ending", [".npy", ".safetensors", ".csv", ".wav"])
def test_a_folder_gives_what_was_written(tmp_path, ending):
    if ending == ".wav":
        pytest.importorskip("soundfile")
    seqs = write(tmp_path / "a", ending)
    folder = SequenceFolder(tmp_path, frame=2)
    assert folder.lengths == [3, 4, 5, 6, 7]
    assert folder.dim == 2
    for seq, read in zip(seqs, folder, strict=True):
        if ending == ".wav":  # 16 bits
            torch.testing.assert_close(read, (seq / 10).clamp(-1, 1), rtol=0, atol=1e-4)
        else:
            assert torch.equal(read, seq)
    assert folder.format == format_of(tmp_path / "a" / f"0{ending}", 2)


def test_classes_are_folders(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / name, ".npy", 2)
    folder = SequenceFolder(tmp_path, labels_from_folders=True)
    assert folder.classes == ["a", "b"]
    assert [label for _, label in folder] == [0, 0, 1, 1]
    items = SequenceItems(Subset(folder, [3, 0]))
    assert items.classes == ["a", "b"]
    assert items.lengths() == [4, 3]


def test_longer_sequences_are_cut_at_random(tmp_path):
    seqs = write(tmp_path, ".npy", 6)
    folder = SequenceFolder(tmp_path, max_length=4)
    assert folder.lengths == [3, 4, 4, 4, 4, 4]
    parts = {folder[5][0, 0].item() for _ in range(60)}
    assert parts == {seqs[5][i, 0].item() for i in range(5)}
    plain = folder.without_augmentation()
    assert all(torch.equal(plain[5], seqs[5][:4]) for _ in range(5))


def test_headers_and_vectors(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4.5\n")
    assert SequenceFolder(tmp_path)[0].tolist() == [[1, 2], [3, 4.5]]
    np.save(tmp_path / "b.npy", np.arange(5))
    assert format_of(tmp_path / "b.npy").read(tmp_path / "b.npy").shape == (5, 1)
    save_file(dict(other=torch.ones(1), seq=torch.ones(4, 2)), tmp_path / "c.safetensors")
    file = tmp_path / "c.safetensors"
    assert format_of(file).shape(file) == (4, 2)


def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match="must hold sequences"):
        SequenceFolder(tmp_path)
    np.save(tmp_path / "a.npy", np.ones((3, 2)))
    np.save(tmp_path / "b.npy", np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"b.npy must have tokens of width 2, .*got 4"):
        SequenceFolder(tmp_path)
    np.save(tmp_path / "b.npy", np.ones((3, 2, 2)))
    with pytest.raises(ValueError, match=r"b.npy cannot be read .*\(3, 2, 2\)"):
        SequenceFolder(tmp_path)
    (tmp_path / "b.npy").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"b.npy cannot be read"):
        SequenceFolder(tmp_path)
    np.save(tmp_path / "b.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"b.npy cannot be read"):  # no pickle is loaded
        SequenceFolder(tmp_path)
    np.save(tmp_path / "b.npy", np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match=r"b.npy .*no finite numbers"):
        SequenceFolder(tmp_path)[1]
    (tmp_path / "c.csv").write_text("1,2\n3\n")
    with pytest.raises(ValueError, match=r"files of one kind, got a.npy and c.csv"):
        SequenceFolder(tmp_path)
    file = tmp_path / "c.csv"
    with pytest.raises(ValueError, match=r"c.csv .*same number of columns"):
        format_of(file).read(file)
    with pytest.raises(ValueError, match="must end in one of"):
        format_of(tmp_path / "d.txt")
