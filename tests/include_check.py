#!/usr/bin/env python3
"""Fails on an include that points against the arrows of the architecture, or on a third-party header outside its room.

    include_check.py ROOT          checks the tree, then that every kind of fault is found in made-up trees
"""
import re
import sys
import tempfile
from pathlib import Path

# What a room may include besides itself; everyone may include core/base and configs/schema. The longest matching
# prefix of a file's path names its room. A name that ends in / means that folder's own files, without those of its folders.
BASE = {"core/base", "configs/schema"}
DEVICE = BASE | {"core/device"}
TENSOR = DEVICE | {"core/tensor"}
OPS = TENSOR | {"core/ops"}
IO = BASE | {"core/io"}
# Operations: a folder each, over what all share; and whose parts an operation is made of.
OP_BASE = TENSOR | {"core/ops/", "core/ops/simd", "core/ops/gpu"}
OP_ARROWS = {
    "simd": [], "gpu": [],
    "matmul": [], "elementwise": [], "attention": [], "attn_res": [], "embedding": [], "hyper_connections": [], "rms_norm": [],
    "router": [], "short_conv": [], "swiglu": [],
    "kda": ["attention"],
    "cross_entropy": ["matmul"],
    "experts": ["matmul"],
    "bf16_products": ["matmul", "experts"],
    "optimizer": ["matmul", "elementwise"],
    "decode": ["attention", "kda", "matmul", "short_conv"],
}
COMM = TENSOR | {"parallel/comm"}
PARALLEL = OPS | {"parallel"}
MODEL = PARALLEL | {"model"}
DATA = IO | {"data"}
INFERENCE = MODEL | DATA | {"inference"}
EVALUATION = COMM | DATA | {"evaluation"}
BELOW_TRAINER = INFERENCE | EVALUATION
TRAINER = BELOW_TRAINER | {"trainer"}
TRAINER_ARROWS = {
    "checkpoint": [],
    "optimizer": ["checkpoint"],
    "record": ["checkpoint"],
    "tensorboard": ["record"],
    "export": ["checkpoint", "record"],
    "step": ["checkpoint", "optimizer", "record"],
    "verify": ["checkpoint", "optimizer", "record", "step"],
}

ROOMS = {
    "core/base": {"core/base"},
    "configs/schema": BASE,
    "core/device": DEVICE,
    "core/tensor": TENSOR,
    "core/ops": OP_BASE,
    **{f"core/ops/{op}": OP_BASE | {f"core/ops/{other}" for other in (op, *others)} for op, others in OP_ARROWS.items()},
    "core/io": IO,
    "parallel/comm": COMM,
    "parallel": PARALLEL,
    "model": MODEL,
    "data": DATA,
    "inference": INFERENCE,
    "evaluation": EVALUATION,
    "trainer": TRAINER,
    **{f"trainer/{part}": BELOW_TRAINER | {f"trainer/{other}" for other in (part, *others)} for part, others in TRAINER_ARROWS.items()},
    "launch": TRAINER | {"launch"},
    "tests": TRAINER | {"tests"},
    "tests/launch": TRAINER | {"tests", "launch"},
    "bench": TRAINER | {"bench"},
}
# Implementations behind parallel/comm's interface: only the program that picks them, and the tests and benchmarks that start
# real ranks, may see them.
HIDDEN = ["parallel/comm/mpi", "parallel/comm/nccl"]
HIDDEN_USERS = ("launch", "tests", "bench")

# What in core/ops is written for one kind of device.
CUDA_OPS = ["core/ops/gpu", r"core/ops/\w+/(cuda\w*\.cpp|\w*kernel\w*\.h|\w+\.cu)"]
# Third-party header (regular expression on the included name), and the only folders, or files, that may see it.
THIRD_PARTY = [
    (r"mpi\.h$|mpi-ext\.h$", ["parallel/comm/mpi", "tests/parallel/comm"]),
    (r"nccl.*\.h$", ["parallel/comm/nccl"]),
    (r"cublas.*\.h$", ["core/ops/matmul/blas.h", "core/device/cuda"]),
    (r"cu(da|rand|dnn|sparse|solver|pti).*\.h$|nv(tx|ml|rtc).*|cub/|cutlass/|cute/|mma\.h$",
     ["core/device/cuda", *CUDA_OPS, "parallel/comm/nccl"]),
    (r"(oneapi/dnnl/)?dnnl.*\.(h|hpp)$", ["core/ops/matmul/onednn.h", "bench"]),
    (r"hwy/", ["core/ops/simd", r"core/ops/\w+/(cpu\w*\.cpp|[\w-]+-inl\.h)"]),
    (r"hdf5(_hl)?\.h$|H5.*\.h$", ["core/io"]),
    (r"yaml-cpp/", ["configs/schema"]),
    (r"spdlog/", ["core/base"]),
    (r"CLI/|CLI11", ["launch"]),
    (r"pcre2.*\.h$|utf8proc\.h$", ["data"]),
    (r"(unsupported/)?Eigen/", ["launch/study"]),
    (r"httplib\.h$", ["launch/serve"]),
    (r"google/protobuf/|.*\.pb\.h$", ["trainer/tensorboard"]),
    (r"gtest/|gmock/", ["tests"]),
    (r"benchmark/", ["bench"]),
]

# Stands where the toolkit's own headers and libraries would: not of the project's rooms.
EXEMPT = "tests/cuda_emulator/"

SUFFIXES = {".h", ".hpp", ".cpp", ".cu", ".cuh", ".inl", ".inc"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)


def room_of(path: str) -> str | None:
    fitting = [room for room in ROOMS if path == room or path.startswith(room + "/")]
    room = max(fitting, key=len, default=None)
    return None if room in ("core/ops", "trainer") and path.count("/") > room.count("/") + 1 else room   # their folders are rooms


def fault(path: str, quote: str, name: str, root: Path) -> str | None:
    """Why `path` must not include `name`, or None."""
    for pattern, folders in THIRD_PARTY:
        if re.match(pattern, name):
            if not any(re.match(f"(?:{place})(/|$)", path) for place in folders):
                return f"{name} belongs to {' and '.join(folders)}"
            return None
    target = room_of(name)
    if quote == "<":
        return f"<{name}>: the project's own headers are included with quotes" if target else None
    if target is None or not (root / name).is_file():
        if (root / path).parent.joinpath(name).is_file():
            return f'"{name}" is relative: includes are written from the project\'s root'
        return f'"{name}" is not a file of the project'
    for hidden in HIDDEN:
        if name.startswith(hidden + "/") and not path.startswith((hidden, *HIDDEN_USERS)):
            return f"{hidden} is behind parallel/comm's interface; {path} must not see it"
    room = room_of(path)
    if not any(target == allowed.rstrip("/") or target.startswith(allowed + "/") for allowed in ROOMS[room]):
        return f"{room} must not see {target} ({name})"
    return None


def check(root: Path) -> tuple[list[str], int]:
    """The faults of a tree, one line each, and the number of files read."""
    faults, num_files = [], 0
    for room in sorted({name.split("/")[0] for name in ROOMS}):
        for file in sorted((root / room).rglob("*")):
            path = file.relative_to(root).as_posix()
            if file.suffix not in SUFFIXES or not file.is_file() or path.startswith(EXEMPT):
                continue
            if room_of(path) is None:
                faults.append(f"{path}:1: in no room of the architecture")
                continue
            num_files += 1
            text = file.read_text(encoding="utf-8")
            for match in INCLUDE.finditer(text):
                why = fault(path, match[1], match[2], root)
                if why:
                    faults.append(f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {why}")
    return faults, num_files


# One file of a made-up tree, one line in it, and whether it is allowed.
CASES = [
    ("core/base/a.h", '#include "core/device/device.h"', False),
    ("core/base/a.h", '#include "configs/schema/config.h"', False),
    ("core/device/a.h", '#include "core/tensor/view.h"', False),
    ("core/tensor/a.h", '#include "core/ops/op.h"', False),
    ("core/ops/a.cpp", '#include "core/io/hdf5.h"', False),
    ("core/ops/a.cpp", '#include "parallel/comm/communicator.h"', False),
    ("core/io/a.h", '#include "core/tensor/view.h"', False),
    ("parallel/comm/a.h", '#include "core/ops/op.h"', False),
    ("parallel/zero/a.h", '#include "model/model.h"', False),
    ("model/a.h", '#include "trainer/train.h"', False),
    ("model/a.h", '#include "data/loader.h"', False),
    ("model/a.h", '#include "inference/decoder.h"', False),
    ("inference/a.h", '#include "trainer/train.h"', False),
    ("evaluation/a.h", '#include "model/model.h"', False),
    ("evaluation/a.h", '#include "trainer/train.h"', False),
    ("inference/a.h", '#include "evaluation/tasks.h"', False),
    ("data/a.h", '#include "model/model.h"', False),
    ("data/a.h", '#include "parallel/comm/communicator.h"', False),
    ("data/a.h", '#include "core/tensor/view.h"', False),
    ("trainer/a.h", '#include "launch/main.h"', False),
    ("trainer/a.h", '#include "parallel/comm/mpi/mpi_communicator.h"', False),
    ("trainer/a.h", '#include "parallel/comm/nccl/nccl_communicator.h"', False),
    ("parallel/comm/a.cpp", '#include "parallel/comm/nccl/nccl_communicator.h"', False),
    ("parallel/comm/nccl/a.cpp", "#include <cublas_v2.h>", False),
    ("parallel/comm/mpi/a.cpp", "#include <nccl.h>", False),
    ("configs/schema/a.h", '#include "core/device/device.h"', False),
    ("trainer/a.cpp", "#include <mpi.h>", False),
    ("parallel/comm/a.cpp", "#  include <mpi.h>", False),
    ("parallel/comm/a.cpp", "#include <nccl.h>", False),
    ("core/device/a.cpp", "#include <cuda_runtime.h>", False),
    ("core/ops/swiglu/cpu.cpp", "#include <oneapi/dnnl/dnnl.hpp>", False),
    ("core/ops/swiglu/ref.cpp", '#include "hwy/highway.h"', False),
    ("core/ops/swiglu/cpu.cpp", "#include <cuda_runtime.h>", False),
    ("core/ops/swiglu/swiglu.h", "#include <cuda_runtime.h>", False),
    ("core/ops/swiglu/cuda.cpp", "#include <cublas_v2.h>", False),
    ("core/ops/a.h", '#include "core/ops/matmul/matmul.h"', False),
    ("core/ops/simd/a.h", '#include "core/ops/matmul/matmul.h"', False),
    ("core/ops/matmul/a.h", '#include "core/ops/kda/kda.h"', False),
    ("trainer/record/a.h", '#include "trainer/train.h"', False),
    ("trainer/checkpoint/a.cpp", '#include "trainer/step/engine.h"', False),
    ("trainer/unheard/a.h", '#include "core/base/log.h"', False),
    ("core/ops/unheard/a.h", '#include "core/ops/op.h"', False),
    ("trainer/a.cpp", "#include <hdf5.h>", False),
    ("trainer/a.cpp", "#include <yaml-cpp/yaml.h>", False),
    ("launch/a.cpp", "#include <spdlog/spdlog.h>", False),
    ("trainer/a.cpp", "#include <CLI/CLI.hpp>", False),
    ("launch/a.cpp", "#include <Eigen/Dense>", False),
    ("trainer/a.cpp", "#include <unsupported/Eigen/NonLinearOptimization>", False),
    ("launch/a.cpp", "#include <httplib.h>", False),
    ("launch/serve/a.cpp", "#include <httplib.h>", True),
    ("trainer/a.cpp", "#include <google/protobuf/message_lite.h>", False),
    ("trainer/a.h", '#include "trainer/tensorboard/event.pb.h"', False),
    ("core/base/a.cpp", "#include <gtest/gtest.h>", False),
    ("core/ops/matmul/a.cpp", '#include "matmul.h"', False),
    ("core/ops/a.cpp", '#include "op.h"', False),
    ("core/ops/a.cpp", '#include "core/ops/gone.h"', False),
    ("core/ops/a.cpp", "#include <core/ops/op.h>", False),
    ("core/elsewhere/a.h", "", False),
    ("tests/core/a.cpp", "#include <cuda_runtime.h>", False),
    ("tests/model/a.cpp", '#include "launch/main.h"', False),
    ("tests/cuda_emulator/src/a.cpp", '#include <cuda_runtime.h>\n#include "a.h"', True),
    ("core/ops/swiglu/cpu_a.cpp", '#include "core/ops/op.h"\n#include "hwy/highway.h"\n#include <vector>', True),
    ("core/ops/matmul/onednn.h", "#include <dnnl.hpp>", True),
    ("core/ops/kda/gate_kernels.cu", "#include <cuda_runtime.h>", True),
    ("core/ops/kda/cuda_gate.cpp", '#include "core/ops/kda/kda.h"\n#include <cuda_runtime_api.h>', True),
    ("core/ops/decode/cuda.cpp", '#include "core/ops/kda/kda.h"\n#include "core/ops/matmul/matmul.h"', True),
    ("trainer/a.cpp", '#include "trainer/step/engine.h"', True),
    ("trainer/verify/a.cpp", '#include "trainer/step/engine.h"\n#include "model/model.h"', True),
    ("model/a.cpp", '#include "core/ops/kda/kda.h"\n#include "core/ops/op.h"', True),
    ("core/ops/a.cpp", '// #include "parallel/comm/communicator.h"', True),
    ("core/io/a.cpp", '#include <hdf5.h>\n#include "configs/schema/config.h"', True),
    ("parallel/comm/mpi/a.cpp", "#include <mpi.h>", True),
    ("parallel/comm/nccl/a.cpp", '#include <nccl.h>\n#include <cuda_runtime_api.h>', True),
    ("launch/a.cpp", '#include "parallel/comm/nccl/nccl_communicator.h"', True),
    ("parallel/zero/a.cpp", '#include "parallel/comm/communicator.h"\n#include "core/ops/op.h"', True),
    ("trainer/a.cpp", '#include "data/loader.h"\n#include "core/io/hdf5.h"\n#include "parallel/comm/communicator.h"', True),
    ("trainer/a.cpp", '#include "inference/decoder.h"\n#include "evaluation/tasks.h"', True),
    ("evaluation/a.cpp", '#include "data/loader.h"\n#include "parallel/comm/communicator.h"', True),
    ("inference/a.cpp", '#include "data/loader.h"\n#include "model/model.h"', True),
    ("launch/a.cpp", '#include <CLI/CLI.hpp>\n#include "parallel/comm/mpi/mpi_communicator.h"', True),
    ("launch/study/a.cpp", "#include <Eigen/Dense>\n#include <unsupported/Eigen/NonLinearOptimization>", True),
    ("tests/launch/study/a.cpp", '#include "launch/main.h"\n#include "tests/support/b.h"', True),
    ("trainer/tensorboard/a.cpp", '#include <event.pb.h>\n#include "core/io/hdf5.h"', True),
    ("tests/model/a.cpp", '#include <gtest/gtest.h>\n#include "tests/support/b.h"', True),
]
TARGETS = ["core/base/log.h", "core/device/device.h", "core/tensor/view.h", "core/ops/op.h", "core/ops/matmul/matmul.h",
           "core/ops/kda/kda.h", "core/io/hdf5.h",
           "configs/schema/config.h", "parallel/comm/communicator.h", "parallel/comm/mpi/mpi_communicator.h",
           "parallel/comm/nccl/nccl_communicator.h",
           "model/model.h", "data/loader.h", "inference/decoder.h", "evaluation/tasks.h", "trainer/train.h", "trainer/step/engine.h",
           "launch/main.h", "tests/support/b.h"]


def self_test() -> list[str]:
    wrong = []
    for path, text, allowed in CASES:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name in TARGETS + [path]:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text("#pragma once\n")
            (root / path).write_text("#pragma once\n" + text + "\n")
            faults, _ = check(root)
            if (not faults) != allowed:
                wrong.append(f"self-test: {path} with {text!r}: expected it {'allowed' if allowed else 'refused'}, got {faults}")
    return wrong


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    faults, num_files = check(Path(sys.argv[1]))
    if num_files == 0:
        faults.append(f"{sys.argv[1]}: no sources there, expected the project's root")
    faults += self_test()
    print("\n".join(faults) if faults else f"{num_files} files follow the arrows; {len(CASES)} self-tests passed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
