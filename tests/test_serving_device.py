"""The numbers of a step as a block, and what is done before the network is called."""

import numpy as np
import pytest

from diffusion.noise import INITIAL_STEP, standard_normal
from serving.device import DRAWN, INTEGERS, NUMBERS, Control, HostDevice, StepTensors

IMAGE, WIDTH, ROWS, EMBEDDINGS = (2, 3, 5), 7, 6, 12


def step_tensors(device: HostDevice, rows: int = ROWS) -> StepTensors:
    generator = np.random.default_rng(1)

    def filled(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    tensors = StepTensors(
        control=device.allocate((Control.words(rows),), np.int64),
        table=device.allocate((EMBEDDINGS, WIDTH), np.float32),
        x=device.allocate((2 * rows, *IMAGE), np.float32),
        x_0=device.allocate((2 * rows, *IMAGE), np.float32),
        x_t=device.allocate((rows, *IMAGE), np.float32),
        x_0_previous=device.allocate((rows, *IMAGE), np.float32),
        noise=device.allocate((rows, *IMAGE), np.float32),
        emb=device.allocate((rows, WIDTH), np.float32),
        eps=device.allocate((rows, *IMAGE), np.float32),
        checksum=device.allocate((rows,), np.float32),
    )
    device.write(tensors.table, filled(EMBEDDINGS, WIDTH))
    device.write(tensors.x, filled(2 * rows, *IMAGE))
    device.write(tensors.x_0, filled(2 * rows, *IMAGE))
    device.write(tensors.noise, np.full((rows, *IMAGE), 0.25, dtype=np.float32))
    return tensors


def control_of_a_mixture() -> Control:
    """Rows that go on, one that was brought, two that begin; noise for some."""
    control = Control(ROWS)
    control.clear(0)
    columns: dict[str, list[int]] = {
        "source": [3, 0, DRAWN, 2 * ROWS - 1, DRAWN, 3],
        "emb_row": [11, 0, 5, 5, 2, 7],
        "seed": [2**63 - 1, -1, 7, -(2**63), 0, 3],  # uint64, read as int64
        "index": [0, 2**32 - 1, 5, 6, 7, 8],
        "step": [0, 999, 0, 2**32 - 2, 4, 5],
    }
    for name, values in columns.items():
        control.integers[INTEGERS.index(name), :ROWS] = values
    control.numbers[NUMBERS.index("s"), :ROWS] = [0.5, 0.0, -0.5, 1e-30, 0.0, 2.0]
    return control


@pytest.mark.parametrize("rows", [1, 64, 65, 1024])
def test_the_rows_of_a_control_lie_where_it_says(rows: int) -> None:
    control = Control(rows)
    assert control.stride >= rows
    assert len(control.block) == Control.words(rows)
    control.integers[:, -1] = np.arange(len(INTEGERS)) + 1
    control.numbers[:, -1] = np.arange(len(NUMBERS)) + 0.5
    as_bytes = control.block.tobytes()
    for row, name in enumerate(INTEGERS):
        offset = control.offset_bytes(name)
        assert offset % 256 == 0
        assert np.frombuffer(as_bytes, np.int64, control.stride, offset)[-1] == row + 1
    for row, name in enumerate(NUMBERS):
        offset = control.offset_bytes(name)
        assert offset % 256 == 0
        assert np.frombuffer(as_bytes, np.float32, control.stride, offset)[-1] == row + 0.5


def test_a_control_lies_in_memory_that_it_is_given() -> None:
    memory = np.zeros(Control.words(200), dtype=np.int64)
    Control(3, memory).integers[0, 2] = 42
    assert memory[2] == 42


def test_rows_are_gathered_and_noise_is_drawn_as_the_control_says() -> None:
    device, control = HostDevice(), control_of_a_mixture()
    tensors = step_tensors(device)
    device.write(tensors.control, control.block)
    device.preparation(tensors, ROWS)()
    size = int(np.prod(IMAGE))
    x, x_0 = (device.read(tensor, 2 * ROWS) for tensor in (tensors.x, tensors.x_0))
    x_t, previous = (device.read(t, ROWS) for t in (tensors.x_t, tensors.x_0_previous))
    noise = device.read(tensors.noise, ROWS)
    for row, (source, _, _, seed, index, step) in enumerate(control.integers[:, :ROWS].T):

        def drawn(at: int, seed: np.int64 = seed, index: np.int64 = index) -> np.ndarray:
            arguments = np.array([seed]).view(np.uint64), np.array([index]), np.array([at])
            return standard_normal(*arguments, size).reshape(IMAGE)

        begins = source == DRAWN
        np.testing.assert_array_equal(x_t[row], drawn(INITIAL_STEP) if begins else x[source])
        np.testing.assert_array_equal(previous[row], np.zeros(IMAGE) if begins else x_0[source])
        noisy = control.numbers[NUMBERS.index("s"), row] != 0
        np.testing.assert_array_equal(noise[row], drawn(step) if noisy else np.full(IMAGE, 0.25))
    table = device.read(tensors.table, EMBEDDINGS)
    np.testing.assert_array_equal(device.read(tensors.emb, ROWS), table[[11, 0, 5, 5, 2, 7]])


def test_what_is_read_is_a_copy_and_what_is_written_begins_where_it_was_told() -> None:
    device = HostDevice()
    tensor = device.allocate((5, 2), np.float32)
    device.write(tensor, np.ones((2, 2), dtype=np.float32), 3)
    read = device.read(tensor, 4)
    np.testing.assert_array_equal(read, [[0, 0], [0, 0], [0, 0], [1, 1]])
    read[:] = 9
    assert device.read(tensor, 5)[:, 0].tolist() == [0, 0, 0, 1, 1]
