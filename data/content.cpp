#include "data/content.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <string>

#include "core/base/error.h"
#include "core/io/input_stream.h"

namespace lamina {

namespace fs = std::filesystem;
using namespace std::string_view_literals;

namespace {

struct Magic {
  size_t offset;
  std::string_view bytes;
  std::string_view what;
  std::string_view help;
};

constexpr std::string_view decompress_first = "decompress it first";
constexpr std::string_view unpack_first = "unpack it first";
constexpr std::string_view as_json_lines = "write its text as JSON lines first";
constexpr std::string_view through_reader = "read it with launch/read_parquet.py FILE | lamina prepare -";
constexpr std::string_view as_tokens = "--in-place uses its tokens as they are";
constexpr std::string_view convert = "convert it first: iconv -f UTF-16 -t UTF-8 FILE | lamina prepare -";
constexpr std::string_view as_text_first = "turn it into text first";

// Formats that are no text. Those that begin with letters are told apart by more than one word.
constexpr Magic magics[] = {
    {0, "PAR1", "a Parquet file", through_reader},
    {0, "PARE", "an encrypted Parquet file", as_json_lines},
    {0, "ARROW1\0\0"sv, "an Arrow file", through_reader},
    {0, "FEA1", "a Feather file", as_json_lines},
    {0, "\x89HDF\r\n\x1a\n", "an HDF5 file",
     "a token folder is ready for training as it is; of other files, write the text as JSON lines"},
    {0, "\x93NUMPY", "a NumPy array", as_tokens},
    {0, "MMIDIDX\0\0"sv, "the index of a Megatron data set", as_tokens},
    {0, "TNTIDX\0\0"sv, "the index of a fairseq data set", as_json_lines},
    {0, "Obj\x01", "an Avro file", as_json_lines},
    {0, "ORC", "an ORC file", as_json_lines},
    {0, "SQLite format 3\0"sv, "an SQLite database", as_json_lines},
    {0, "PK\x03\x04", "a zip archive", "unpack it first: unzip -p FILE | lamina prepare -"},
    {0, "PK\x05\x06", "an empty zip archive", unpack_first},
    {257, "ustar", "a tar archive", "unpack it first: tar -xf FILE"},
    {0, "7z\xbc\xaf\x27\x1c", "a 7z archive", unpack_first},
    {0, "Rar!\x1a\x07", "a RAR archive", unpack_first},
    {0, "!<arch>\n", "an ar archive", unpack_first},
    {0, "\x1f\x8b", "gzip data in compressed data", decompress_first},
    {0, "\x28\xb5\x2f\xfd", "Zstandard data in compressed data", decompress_first},
    {0,
     "\xfd"
     "7zXZ\0"sv,
     "xz data in compressed data", decompress_first},
    {0, "BZh91AY&SY", "bzip2 data in compressed data", decompress_first},
    {0, "\x04\x22\x4d\x18", "an LZ4 file", "decompress it first: lz4 -dc FILE | lamina prepare -"},
    {0, "\xff\x06\0\0sNaPpY"sv, "a Snappy file", decompress_first},
    {0, "LZIP\x01", "an lzip file", "decompress it first: lzip -dc FILE | lamina prepare -"},
    {0, "\x1f\x9d", "a compress (.Z) file", "decompress it first: zcat FILE | lamina prepare -"},
    {0, "\x89LZO\0\r\n\x1a\n"sv, "an lzop file", decompress_first},
    {0, "\xff\xfe\0\0"sv, "text in UTF-32", "convert it first: iconv -f UTF-32 -t UTF-8 FILE | lamina prepare -"},
    {0, "\0\0\xfe\xff"sv, "text in UTF-32", "convert it first: iconv -f UTF-32 -t UTF-8 FILE | lamina prepare -"},
    {0, "\xff\xfe", "text in UTF-16", convert},
    {0, "\xfe\xff", "text in UTF-16", convert},
    {0, "\xff\xff\xff\xff", "an Arrow stream", through_reader},
    {0, "GGUF", "a GGUF model", ""},
    {0,
     "\x7f"
     "ELF",
     "a program", ""},
    {0, "%PDF-", "a PDF document", as_text_first},
    {0, "%!PS-", "a PostScript document", as_text_first},
    {0, "{\\rtf", "an RTF document", as_text_first},
    {0, "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document", as_text_first},
    {0, "\x89PNG\r\n\x1a\n", "a PNG picture", ""},
    {0, "\xff\xd8\xff", "a JPEG picture", ""},
    {0, "GIF89a", "a GIF picture", ""},
    {0, "RIFF", "a RIFF file", ""},
    {0, "OggS\0"sv, "an Ogg file", ""},
};

// A text may begin with these.
constexpr std::string_view words[] = {"PAR1", "PARE", "FEA1", "ORC", "GGUF", "RIFF", "ustar"};

// Text, but of a form whose markup nobody means to train on. --format text takes it all the same.
constexpr Magic forms[] = {{0, "WARC/1.", "a WARC crawl", "extract its text first, or --format text"},
                           {0, "version https://git-lfs.github.com/spec/", "a Git LFS pointer instead of the file",
                            "git lfs pull, or --format text"}};

constexpr std::string_view blanks = " \t\r\n";

std::string_view skip_blanks(std::string_view text) {
  const size_t at = text.find_first_not_of(blanks);
  return at == std::string_view::npos ? std::string_view() : text.substr(at);
}

// What follows a JSON string, or nothing where there is none. Line breaks don't stand in one.
std::string_view after_string(std::string_view text) {
  if (!text.starts_with('"')) return {};
  for (size_t i = 1; i < text.size() && static_cast<unsigned char>(text[i]) >= 0x20; ++i) {
    if (text[i] == '\\')
      ++i;
    else if (text[i] == '"')
      return text.substr(i + 1);
  }
  return {};
}

bool begins_object(std::string_view text) {
  if (!text.starts_with('{')) return false;
  text = skip_blanks(text.substr(1));
  return text.starts_with('}') || skip_blanks(after_string(text)).starts_with(':');
}

// "[1] A footnote" and "[Illustration]" are text.
bool begins_array(std::string_view text) {
  if (!text.starts_with('[')) return false;
  text = skip_blanks(text.substr(1));
  if (begins_object(text)) return true;
  const std::string_view rest = skip_blanks(after_string(text));
  return rest.starts_with(',') || rest.starts_with(']');
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// The ending before that of a compression.
std::string inner_ending(const fs::path& path) {
  const std::string last = lower(path.extension().string());
  for (const std::string_view compressed : {".gz", ".zst", ".xz", ".bz2"})
    if (last == compressed) return lower(path.stem().extension().string());
  return last;
}

[[noreturn]] void refuse(const fs::path& path, std::string_view what, std::string_view help) {
  throw Error("{}: found {}, expected text or JSON records{}{}", io::describe_input(path), what,
              help.empty() ? "" : "; ", help);
}

bool has_control_bytes(std::string_view head) {
  return std::any_of(head.begin(), head.end(),
                     [](unsigned char c) { return c < '\t' || (c > '\r' && c < ' ' && c != '\x1b'); });
}

bool matches(const Magic& magic, std::string_view head) {
  if (head.size() < magic.offset || !head.substr(magic.offset).starts_with(magic.bytes)) return false;
  const bool is_word = std::find(std::begin(words), std::end(words), magic.bytes) != std::end(words);
  return !is_word || has_control_bytes(head.substr(0, 264));
}

// Their tokens have no mark of their own: the file beside them has.
bool is_megatron_data(const fs::path& path) {
  if (path.extension() != ".bin") return false;
  char mark[9] = {};
  std::ifstream(fs::path(path).replace_extension(".idx"), std::ios::binary).read(mark, sizeof mark);
  return std::string_view(mark, sizeof mark) == "MMIDIDX\0\0"sv;
}

bool is_safetensors(std::string_view head) {  // the header's length in 8 bytes, then the header
  return head.size() > 10 && head.substr(5, 5) == "\0\0\0{\""sv;
}

}  // namespace

void check_content_format(std::string_view format) {
  for (const std::string_view known : {"auto", "text", "jsonl", "json"})
    if (format == known) return;
  throw Error("unknown format \"{}\", expected auto, text, jsonl or json", format);
}

Content identify_content(const fs::path& path, std::string_view head, std::string_view format) {
  for (const Magic& magic : magics)
    if (matches(magic, head)) refuse(path, magic.what, magic.help);
  if (is_megatron_data(path)) refuse(path, "the tokens of a Megatron data set", as_tokens);
  if (is_safetensors(head)) refuse(path, "a safetensors file", "");
  if (format == "text") return Content::text;
  if (format == "jsonl") return Content::json_lines;
  if (format == "json") return Content::json_array;
  for (const Magic& form : forms)
    if (matches(form, head)) refuse(path, form.what, form.help);
  if (head.starts_with("\xef\xbb\xbf")) head.remove_prefix(3);  // a byte order mark
  const std::string_view text = skip_blanks(head);
  const std::string ending = inner_ending(path);
  if (begins_array(text) || (ending == ".json" && text.starts_with('['))) return Content::json_array;
  if (begins_object(text)) {
    const std::string_view line = text.substr(0, text.find('\n'));
    if (std::string_view("{[,:").find(line[line.find_last_not_of(blanks)]) != std::string_view::npos)
      refuse(path, "a JSON object over several lines", "one record a line: jq -c . FILE | lamina prepare -");
    return Content::json_lines;
  }
  // A name that promises JSON: the first record will say what is wrong.
  return ending == ".json" || ending == ".jsonl" || ending == ".ndjson" ? Content::json_lines : Content::text;
}

}  // namespace lamina
