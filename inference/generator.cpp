#include "inference/generator.h"

#include <algorithm>

#include "core/tensor/host_copy.h"

namespace lamina::inference {
namespace {

// The longest end of `text` that one of the strings begins with.
size_t beginning_of_stop(std::string_view text, const std::vector<std::string>& stop) {
  size_t longest = 0;
  for (const std::string& each : stop)
    for (size_t length = std::min(each.size() - 1, text.size()); length > longest; --length)
      if (text.ends_with(std::string_view(each).substr(0, length))) longest = length;
  return longest;
}

// Of the first `count` tokens, in `room` where they aren't floats.
std::span<const float> row_of(const TensorView& logits, size_t row, size_t count, std::vector<float>& room) {
  const int64_t first = static_cast<int64_t>(row) * logits.size(1);
  if (logits.dtype == DType::f32) return {logits.as<float>() + first, count};
  room.resize(count);
  for (size_t i = 0; i < count; ++i) room[i] = static_cast<float>(element_of(logits, first + static_cast<int64_t>(i)));
  return room;
}

void score(TokenEvent& event, std::span<const float> logits, const std::optional<int64_t>& num_likeliest) {
  if (!num_likeliest) return;
  const LogProbabilities probabilities(logits);
  event.log_probability = probabilities.of(event.token);
  event.likeliest = probabilities.likeliest(*num_likeliest);
}

}  // namespace

std::string StopFilter::add(std::string_view text, bool& found) {
  held_ += text;
  size_t end = std::string::npos;
  for (const std::string& each : stop_) end = std::min(end, held_.find(each));
  found = end != std::string::npos;
  if (!found) end = held_.size() - beginning_of_stop(held_, stop_);
  std::string certain = held_.substr(0, end);
  held_.erase(0, found ? held_.size() : end);
  return certain;
}

Generator::Generator(Decoder& decoder, const Tokenizer& tokenizer, int64_t prompt_tokens_per_pass)
    : decoder_(decoder), tokenizer_(tokenizer), prompt_tokens_per_pass_(prompt_tokens_per_pass) {
  LAMINA_CHECK(prompt_tokens_per_pass > 0, "{} tokens per pass", prompt_tokens_per_pass);
}

int64_t Generator::add(Request request) {
  LAMINA_CHECK(!request.tokens.empty() && request.num_samples > 0 && request.max_tokens >= 0,
               "a request of {} tokens for {} samples of {}", request.tokens.size(), request.num_samples,
               request.max_tokens);
  for (const std::string& stop : request.stop) LAMINA_CHECK(!stop.empty(), "an empty stop text");
  if (request.score_prompt)
    for (const int32_t token : request.tokens)
      LAMINA_CHECK(token < tokenizer_.vocab_size(), "token {} of {}", token, tokenizer_.vocab_size());
  jobs_.push_back({next_number_, std::move(request), decoder_.make_sequence(), 0, {}});
  return next_number_++;
}

void Generator::cancel(int64_t request) {
  jobs_.remove_if([&](const Job& job) { return job.number == request; });
}

void Generator::begin_samples(Job& job) {
  const Request& request = job.request;
  job.samples.reserve(static_cast<size_t>(request.num_samples));
  for (int i = 0; i < request.num_samples; ++i) {
    const bool is_last = i + 1 == request.num_samples;
    Sequence sequence = is_last ? std::move(job.prompt) : decoder_.make_sequence();
    if (!is_last) sequence.assign(job.prompt);
    job.samples.push_back({std::move(sequence), TextStream(tokenizer_, request.tokens), StopFilter(request.stop),
                           CounterRng(request.seed, request.first_stream + static_cast<uint64_t>(i))});
  }
}

// The next piece's logits belong to the tokens behind them; those of the last one to the samples.
Decoder::EachLogits Generator::scorer(const Job& job, std::vector<TokenEvent>& events) {
  return [&job, &events, fed = job.fed, tokenizer = &tokenizer_](int64_t first, const TensorView& logits) {
    const auto vocab_size = static_cast<size_t>(std::min(tokenizer->vocab_size(), logits.size(1)));
    std::vector<float> floats;
    for (size_t row = 0; row < static_cast<size_t>(logits.size(0)); ++row) {
      const size_t next = fed + static_cast<size_t>(first) + row + 1;
      if (next == job.request.tokens.size()) continue;
      TokenEvent event;
      event.request = job.number;
      event.sample = TokenEvent::of_prompt;
      event.token = job.request.tokens[next];
      score(event, row_of(logits, row, vocab_size, floats), job.request.num_likeliest);
      events.push_back(std::move(event));
    }
  };
}

TokenEvent Generator::draw(Job& job, int index, std::span<const float> logits) {
  Sample& sample = job.samples[static_cast<size_t>(index)];
  const Request& request = job.request;
  const double uniform = sample.random.uniform(static_cast<uint64_t>(sample.num_tokens));
  TokenEvent event;
  event.request = job.number;
  event.sample = index;
  if (request.max_tokens == 0) {
    event.finish = Finish::length;
    sample.is_done = true;
    return event;
  }
  event.token = sample.last = static_cast<int32_t>(draw_token(logits, request.sampling, uniform));
  score(event, logits, request.num_likeliest);
  ++sample.num_tokens;
  bool stopped = false;
  if (event.token == tokenizer_.end_of_document())
    event.finish = Finish::end_of_document;
  else
    event.text = sample.stop.add(sample.text.add(event.token), stopped);
  if (stopped)
    event.finish = Finish::stop_text;
  else if (event.finish == Finish::no && sample.num_tokens == request.max_tokens)
    event.finish = Finish::length;
  // A character that the limit cuts is left out; one that the model itself broke off is not.
  if (event.finish == Finish::end_of_document) event.text += sample.stop.add(sample.text.finish(), stopped);
  if (event.finish == Finish::length || event.finish == Finish::end_of_document) event.text += sample.stop.finish();
  sample.is_done = event.finish != Finish::no;
  return event;
}

std::vector<TokenEvent> Generator::step() {
  std::vector<Decoder::Feed> feeds;
  std::vector<Place> places;
  std::vector<TokenEvent> events;
  for (Job& job : jobs_) {
    for (size_t i = 0; i < job.samples.size(); ++i) {
      Sample& sample = job.samples[i];
      if (sample.is_done) continue;
      feeds.push_back({&sample.sequence, {&sample.last, 1}});
      places.push_back({&job, static_cast<int>(i)});
    }
  }
  int64_t room = prompt_tokens_per_pass_;
  for (Job& job : jobs_) {
    if (!job.reads_prompt() || room == 0) continue;
    const auto rest = std::span<const int32_t>(job.request.tokens).subspan(job.fed);
    const auto piece = rest.first(std::min(rest.size(), static_cast<size_t>(room)));
    feeds.push_back({&job.prompt, piece, job.request.score_prompt ? scorer(job, events) : Decoder::EachLogits{}});
    places.push_back({&job, -1});
    job.fed += piece.size();
    room -= static_cast<int64_t>(piece.size());
  }
  if (feeds.empty()) return events;
  const TensorView logits = decoder_.feed(feeds);
  // Rows that pad the vocabulary are never drawn.
  const auto vocab_size = static_cast<size_t>(std::min(tokenizer_.vocab_size(), logits.size(1)));
  std::vector<float> floats;
  for (size_t i = 0; i < places.size(); ++i) {
    Job& job = *places[i].job;
    if (places[i].sample < 0 && job.reads_prompt()) continue;
    const auto row = row_of(logits, i, vocab_size, floats);
    if (places[i].sample >= 0) {
      events.push_back(draw(job, places[i].sample, row));
      continue;
    }
    begin_samples(job);
    for (int sample = 0; sample < job.request.num_samples; ++sample) events.push_back(draw(job, sample, row));
  }
  jobs_.remove_if([](const Job& job) {
    return !job.samples.empty() &&
           std::all_of(job.samples.begin(), job.samples.end(), [](const Sample& sample) { return sample.is_done; });
  });
  return events;
}

}  // namespace lamina::inference
