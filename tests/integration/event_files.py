"""Reads TensorBoard's event files, with nothing of TensorBoard, protobuf or Lamina: records, checksums, wire format."""
import struct
from pathlib import Path


class EventFileError(Exception):
    pass


def crc32c(data: bytes) -> int:
    """Bit by bit, from the polynomial's definition: 0x1EDC6F41, reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        if len(data) - at < 12:
            raise EventFileError(f"{len(data) - at} bytes at {at} where a record begins")
        length, check = struct.unpack_from("<QI", data, at)
        if check != masked(crc32c(data[at:at + 8])):
            raise EventFileError(f"the length of the record at {at} has another checksum")
        body = data[at + 12:at + 12 + length]
        if len(data) < at + 16 + length:
            raise EventFileError(f"the record at {at} is cut off")
        if struct.unpack_from("<I", data, at + 12 + length)[0] != masked(crc32c(body)):
            raise EventFileError(f"the record at {at} has another checksum")
        found.append(body)
        at += 16 + length
    return found


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def fields(data: bytes) -> dict[int, list]:
    """Of a message: by field number, numbers (varint), or bytes (everything else)."""
    found, at = {}, 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                size, at = varint(data, at)
            if size is None or at + size > len(data):
                raise EventFileError(f"field {number} of wire type {kind} at {at}")
            value, at = data[at:at + size], at + size
        found.setdefault(number, []).append(value)
    return found


def doubles(data: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 8}d", data))


def histogram(data: bytes) -> dict:
    found = fields(data)
    names = {1: "min", 2: "max", 3: "num", 4: "sum", 5: "sum_squares"}   # an absent number is 0
    out = {name: doubles(found[number][0])[0] if number in found else 0.0 for number, name in names.items()}
    return out | {"limits": doubles(found[6][0]), "counts": doubles(found[7][0])}


def hyperparameters(session: bytes) -> dict:
    out = {}
    for entry in fields(session)[1]:
        key, value = (fields(entry)[number][0] for number in (1, 2))
        kind, found = next(iter(fields(value).items()))
        out[key.decode()] = {2: lambda v: doubles(v)[0], 3: bytes.decode, 4: bool}[kind](found[0])
    return out


def event(data: bytes) -> dict:
    found = fields(data)
    out = {"wall_time": doubles(found[1][0])[0], "step": found.get(2, [0])[0], "scalars": {}, "histograms": {}, "texts": {}, "hparams": {}}
    if 3 in found:
        out["file_version"] = found[3][0].decode()
    if 7 in found:
        out["session_status"] = fields(found[7][0])[1][0]
    for summary in found.get(5, []):
        for value in fields(summary).get(1, []):
            parts = fields(value)
            tag = parts[1][0].decode()
            if tag in out["scalars"] or tag in out["histograms"]:
                raise EventFileError(f"step {out['step']} has {tag} twice")
            if 2 in parts:
                out["scalars"][tag] = struct.unpack("<f", parts[2][0])[0]
            elif 5 in parts:
                out["histograms"][tag] = histogram(parts[5][0])
            else:
                plugin = fields(fields(parts[9][0])[1][0])
                if plugin[1][0] == b"text":
                    out["texts"][tag] = [text.decode() for text in fields(parts[8][0])[8]]
                elif (plugin[1][0], tag) == (b"hparams", "_hparams_/session_start_info"):
                    out["hparams"] = hyperparameters(fields(plugin[2][0])[3][0])
                else:
                    raise EventFileError(f"{tag} is of the plugin {plugin[1][0]}")
    return out


def read(path: Path) -> list[dict]:
    return [event(record) for record in records(path.read_bytes())]


def read_whole(path: Path) -> list[dict]:
    """Without a last record that a kill cut off."""
    data = path.read_bytes()
    ends, at = [0], 0
    while len(data) - at >= 12:
        at += 16 + struct.unpack_from("<Q", data, at)[0]
        ends.append(at)
    return [event(record) for record in records(data[:max(end for end in ends if end <= len(data))])]


def files(run: Path) -> list[Path]:
    return sorted(run.glob("events.out.tfevents.*"))


def rounded(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def flattened(row: dict, prefix: str = "") -> dict[str, float]:
    """The scalars that a row of metrics.jsonl stands for, as 32-bit floats."""
    out = {}
    items = row.items() if isinstance(row, dict) else enumerate(row)
    for key, value in items:
        if prefix == "" and key == "step":
            continue
        if isinstance(value, (dict, list)):
            out |= flattened(value, f"{prefix}{key}/")
        elif not isinstance(value, str):
            out[f"{prefix}{key}"] = rounded(value)
    return out


def layer_tags(rows: list[dict]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Scalars and histograms' values of one step's rows of layers.jsonl."""
    scalars, lists = {}, {}
    for row in rows:
        sublayer = f"{row['layer']:03}.{row['sublayer']}"
        for key, value in row.items():
            if key in ("step", "layer", "sublayer"):
                continue
            values = value if isinstance(value, list) else [value]
            if isinstance(value, list):
                lists[f"layers/{key}/{sublayer}"] = values
            else:
                scalars[f"layers/{key}/{sublayer}"] = rounded(value)
            if key in ("hidden_rms", "output_rms", "grad_rms", "depth_weights"):
                lists.setdefault(f"layers/{key}", []).extend(values)
    return scalars, lists
