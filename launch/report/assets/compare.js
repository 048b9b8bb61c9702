// Several runs: where they differ.

function lastOf(run, key) {
  const data = run.series[key];
  return data && data.value.length > 0 ? data.value[data.value.length - 1] : null;
}

function finalTable(runs) {
  const six = value => short(value, 6);
  const lowest = run => run.series.loss ? extent([run.series.loss.value])[0] : null;
  return table([{title: 'Run'}, {title: 'State'}, {title: 'Tokens', format: count}, {title: 'Loss', format: six},
                {title: 'Lowest loss', format: six},
                {title: 'Validation loss', format: six}, {title: 'Bits per byte', format: six}, {title: 'Gradient norm', format: six},
                {title: 'Tokens/s, mean', format: count}, {title: 'MFU, mean', format: percent}],
               runs.map(run => [run.label, run.summary.state, run.summary.tokens, lastOf(run, 'loss'), lowest(run),
                                lastOf(run, 'validation_loss'),
                                lastOf(run, 'validation_bits_per_byte'), lastOf(run, 'grad_norm'), run.summary.mean_tokens_per_second,
                                run.summary.mean_mfu]));
}

function comparisonSection(runs, comparison) {
  const place = section('differences', 'Where they differ');
  place.append(el('h3', {}, 'Final values'), finalTable(runs), el('h3', {}, 'First difference'));
  for (const other of comparison.against)
    place.append(el('div', {class: 'difference', 'data-run': other.run},
                    el('p', {}, el('strong', {}, runs[0].label), ' against ', el('strong', {}, runs[other.run].label)),
                    el('ul', {}, other.sentences.map(line => el('li', {}, line)))));
  place.append(el('p', {class: 'note'}, 'Bit for bit: the logged doubles are not the same. Beyond rounding: they differ by more than ' +
                  short(comparison.rounding) + ' of the larger one, more than sums in another order leave in a first step. Compared are ' +
                  'steps and sublayers that both runs logged: loss, then gradient norm; and by depth hidden_rms, depth_weights, ' +
                  'output_rms, max_logit, expert_load, grad_rms, grad_norm, weight_norm.'),
               el('h3', {}, 'Configuration keys that differ'));
  place.append(comparison.configuration.length === 0 ? el('p', {}, 'None.')
    : table([{title: 'Key'}, ...runs.map(run => ({title: run.label}))],
            comparison.configuration.map(entry => [entry.key, ...entry.values])));
  return place;
}
