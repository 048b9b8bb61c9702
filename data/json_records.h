// Documents out of JSON records: one a line, or the elements of one array.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "data/text_input.h"

namespace lamina {

// Takes a file's text in blocks of any size and passes its documents on.
class DocumentSplitter {
 public:
  virtual ~DocumentSplitter() = default;
  virtual void feed(std::string_view block) = 0;
  virtual void finish() = 0;
};

// Memory use is the longest record. Both throw Error with the record's line; what is wrong within a record is counted instead where the
// format says so. What they are handed must live as long as they do.
std::unique_ptr<DocumentSplitter> make_json_lines(const std::string& name, const TextFormat& format,
                                                  const DocumentSink& sink, TextCounts& counts);
std::unique_ptr<DocumentSplitter> make_json_array(const std::string& name, const TextFormat& format,
                                                  const DocumentSink& sink, TextCounts& counts);

}  // namespace lamina
