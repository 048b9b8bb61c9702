// Everything that is logged at every step.

function checkBox(id, name, isChecked, change) {
  const input = el('input', {type: 'checkbox', id, checked: isChecked});
  input.addEventListener('change', () => change(input.checked));
  return el('label', {}, input, ' ' + name);
}

function curveControls(runs) {
  const note = el('p', {class: 'note', 'aria-live': 'polite'});
  const redraw = () => view.redraws.forEach(draw => draw());
  const radio = kind => {
    const input = el('input', {type: 'radio', name: 'x-axis', value: kind, checked: kind === view.x});
    input.addEventListener('change', () => {
      view.x = kind;
      note.textContent = axes[kind].note || '';
      redraw();
    });
    return el('label', {}, input, ' ' + axes[kind].name);
  };
  const box = (key, name) => checkBox('control-' + key, name, view[key], isChecked => {
    view[key] = isChecked;
    redraw();
  });
  const kinds = Object.keys(axes).filter(kind => !['running', 'time'].includes(kind) || runs.some(hasTimes));
  return el('div', {},
            el('form', {class: 'controls', 'aria-label': 'How the curves are drawn'},
               el('fieldset', {}, el('legend', {}, 'Against'), kinds.map(radio)),
               box('smooth', 'smoothed'), box('logLoss', 'logarithmic loss')),
            note, el('p', {class: 'note'}, zoomHint));
}

// A run's series as a plot wants it.
function lineOf(run, data, look) {
  const xs = positions(run, data, view.x);
  const breaks = new Set();
  if (view.x === 'time')
    data.step.forEach((step, i) => { if (i > 0 && startOf(run, step) !== startOf(run, data.step[i - 1])) breaks.add(i); });
  return {x: xs, y: data.value, mean: data.mean, breaks, rows: data.rows, stretch: data.stretch, tokens: data.tokens, steps: data.step,
          ...look};
}

// keys: [{key, name, marks}] of the runs' series, all in one plot. Of several runs each has its colour and dashes.
function seriesOf(runs, keys) {
  return runs.flatMap((run, r) => keys.flatMap((entry, k) => {
    const data = run.series[entry.key];
    if (!data) return [];
    const index = runs.length > 1 ? r : k;
    return [lineOf(run, data, {name: runs.length > 1 ? run.label + (keys.length > 1 ? ', ' + entry.name : '') : entry.name,
                               colour: colour(index), dash: dash(runs.length > 1 ? r + (k ? 2 * k : 0) : k), marks: entry.marks})];
  }));
}

// What all plots of curves have in common: their axis, as the controls say, and what happened to the runs.
const curveAxis = runs => ({
  group: view.x, xDomain: fullExtent(runs, view.x), xLabelOf: axes[view.x].label, xValue: axes[view.x].value, xTicks: axes[view.x].ticks,
  xTickFormat: axes[view.x].tickFormat, events: eventsOf(runs, view.x)});

function curveTable(runs, keys) {
  const series = seriesOf(runs, keys).map(s => ({...s, x: s.steps}));
  const tokens = new Map(series.flatMap(s => s.steps.map((step, i) => [step, s.tokens[i]])));
  return el('div', {}, thinningNote(series) ? el('p', {class: 'note'}, thinningNote(series)) : null,
            curvesTable('Step', series, runs.length === 1 ? [{title: 'Tokens', of: tokens}] : []));
}

// A row per run and step that one of the keys has; what is not logged at a step is empty, what is no number nan.
function curveCsv(runs, keys, unit) {
  const used = keys.filter(entry => runs.some(run => run.series[entry.key])), timed = runs.some(hasTimes);
  const thinned = entry => Math.max(...runs.map(run => run.series[entry.key] ? run.series[entry.key].stretch : 1));
  const columns = ['run', 'step', 'tokens', ...(timed ? ['time [UTC]', 'time running [s]'] : []), ...used.map(entry =>
    withUnit(entry.name, unit + (thinned(entry) > 1 ? '; smallest and largest of every ' + thinned(entry) + ' rows' : '')))];
  const rows = runs.flatMap(run => {
    const byStep = new Map();
    used.forEach((entry, k) => {
      const data = run.series[entry.key];
      if (!data) return;
      const times = positions(run, data, 'time'), running = positions(run, data, 'running');
      data.step.forEach((step, i) => {
        if (!byStep.has(step)) {
          const known = [times[i] === null ? null : isoTime(times[i]), running[i] === null ? null : Number(running[i].toFixed(3))];
          const when = timed ? known : [];
          byStep.set(step, [run.label, step, data.tokens[i], ...when, ...used.map(() => null)]);
        }
        const row = byStep.get(step);
        row[row.length - used.length + k] = data.value[i] === null ? NaN : data.value[i];
      });
    });
    return [...byStep.values()].sort((a, b) => a[1] - b[1]);
  });
  return {columns, rows};
}

// options: {title, note, yLabel, yFormat, yLog(), zero, keys}; null where no run has any of them.
function curveFigure(runs, options) {
  const keys = options.keys.filter(entry => runs.some(run => run.series[entry.key]));
  if (keys.length === 0) return null;
  const host = figure(options.title, options.note);
  host.dataset.plot = keys[0].key;
  view.redraws.push(linePlot(host, () => ({
    ...curveAxis(runs), title: options.title, series: seriesOf(runs, keys), yLabel: options.yLabel, yFormat: options.yFormat || short,
    yLog: options.yLog ? options.yLog() : false, zero: options.zero, yTicks: options.yTicks, smooth: view.smooth && !options.isExact})));
  exportTools(host, [...runs.map(run => run.label), options.title], () => curveCsv(runs, keys, options.unit || options.yLabel));
  host.append(tableBehind('Table of ' + uncapital(options.title), () => curveTable(runs, keys)));
  return host;
}

// Resumes, spikes and stages in words; null where nothing happened.
function eventsTable(runs) {
  const events = eventsOf(runs, 'step');
  if (events.length === 0) return null;
  const zero = event => runs.find(run => run.label === event.run).time_zero;
  const when = event => isNumber(event.time) ? isoTime(zero(event) + event.time).replace('T', ' ') : null;
  const older = runs.reduce((sum, run) => sum + (run.spikes_left_out || 0), 0);
  const many = runs.length > 1;
  const columns = [...(many ? [{title: 'Run'}] : []), {title: 'Step', format: whole}, {title: 'What'}, {title: 'When (UTC)'},
                   {title: 'Why'}];
  const rows = events.map(event => [...(many ? [event.run] : []), event.step, event.what, when(event), event.reason || null]);
  const note = older > 0 ? el('p', {class: 'note'}, 'The oldest ' + whole(older) + ' spikes are left out.') : null;
  return el('div', {}, eventLegend(events),
            tableBehind('Table of resumes, spikes and stages (' + whole(events.length + older) + ')',
                        () => el('div', {}, note, table(columns, rows))));
}

// What the curves leave out; nothing where every row is drawn.
function stretchNote(runs) {
  const thinned = runs.filter(run => run.series.loss && run.series.loss.stretch > 1);
  if (thinned.length === 0) return [];
  const of = run => (runs.length > 1 ? run.label + ': ' : '') + whole(run.series.loss.rows) + ' rows, of every ' + run.series.loss.stretch +
                    ' the smallest and the largest value';
  const many = thinned.length + ' runs, of every ' + extent([thinned.map(run => run.series.loss.stretch)]).join(' to ') +
               ' rows the smallest and the largest value';
  return ['Thinned: ' + (thinned.length > 3 ? many : thinned.map(of).join('; ')) + '. Smoothed lines are of the mean of all rows.'];
}

function curvesSection(runs) {
  const place = section('curves', 'Training', ...stretchNote(runs));
  place.append(curveControls(runs), eventsTable(runs) || '');
  const tasks = [...new Set(runs.flatMap(run => Object.keys(run.series)))].filter(key => key.startsWith('tasks.'));
  const figures = [
    {title: 'Loss', yLabel: 'nats per token', yLog: () => view.logLoss,
     keys: [{key: 'loss', name: 'training'}, {key: 'validation_loss', name: 'validation', marks: true}]},
    {title: 'Validation, bits per byte', yLabel: 'bits per byte of text', unit: 'bits per byte',
     keys: [{key: 'validation_bits_per_byte', name: 'validation', marks: true}]},
    {title: 'Right answers', note: 'Share of the multiple-choice items of each file.', yLabel: 'share', yFormat: percent, zero: true,
     keys: tasks.map(key => ({key, name: key.slice('tasks.'.length, -'.acc'.length), marks: true}))},
    {title: 'Gradient norm', note: 'Of all parameters, before clipping.', yLabel: 'L2 norm', yLog: () => true,
     keys: [{key: 'grad_norm', name: 'gradient norm'}]},
    {title: 'Learning rate', yLabel: 'learning rate', unit: '1', zero: true, isExact: true, keys: [{key: 'lr', name: 'learning rate'}]},
    {title: 'Throughput', note: 'Of each step alone: without validation, checkpoints and starts.', yLabel: 'tokens per second',
     yFormat: count,
     zero: true, keys: [{key: 'tokens_per_second', name: 'throughput'}]},
    {title: 'Use of the peak (MFU)', note: 'The model\u2019s arithmetic over the peak of all ranks.', yLabel: 'share of the peak',
     yFormat: percent, zero: true, keys: [{key: 'mfu', name: 'MFU'}]},
    {title: 'Balance loss', note: 'Auxiliary loss of the experts, weighted.', yLabel: 'nats per token',
     keys: [{key: 'aux_loss', name: 'balance loss'}]},
  ];
  place.append(el('div', {class: 'figures'}, figures.map(options => curveFigure(runs, options))));
  return place;
}

// ---- Communication and memory ----

const traffic = [['pipeline_hidden', 'pipeline, hidden stream'], ['pipeline_blocks', 'pipeline, block summaries'],
                 ['data', 'data-parallel'], ['expert', 'experts']];

function communicationFigures(runs) {
  return runs.map(run => {
    const keys = traffic.map(([key, name]) => ({key: 'comm_bytes.' + key, name}));
    const used = keys.filter(entry => run.series[entry.key] && run.series[entry.key].value.some(value => value > 0));
    const title = 'Bytes sent per step' + (runs.length > 1 ? ', ' + run.label : '');
    if (used.length === 0) {
      const host = figure(title, 'None: nothing was sent between ranks.');
      host.dataset.plot = 'no-communication';
      return host;
    }
    return curveFigure([run], {title, note: 'By what they carry; both directions, summed over ranks.', yLabel: 'bytes', yFormat: bytes,
                               yTicks: byteTicks, zero: true, isExact: true, keys: used});
  });
}

const purposes = [['activations', 'activations'], ['block_summaries', 'block summaries'],
                  ['block_summary_gradients', 'gradients of block summaries'], ['hidden_streams', 'hidden streams']];

function drawBars(peaks, used, width) {
  const ranks = used[0].values.length, row = ranks > 24 ? 12 : 24, left = 54, height = 22 + ranks * row + 40;
  const totals = Array.from({length: ranks}, (_, r) => used.reduce((sum, entry) => sum + entry.values[r], 0));
  const x = scale([0, Math.max(...totals)], [left, width - 20], false, Math.max(2, width / 120), byteTicks);
  const root = svg('svg', {viewBox: '0 0 ' + width + ' ' + height, width, height, role: 'img', 'aria-label': 'Peak bytes per rank'});
  const bottom = 12 + ranks * row;
  for (const tick of x.ticks)
    root.append(svg('line', {class: 'grid', x1: x(tick), x2: x(tick), y1: 8, y2: bottom}),
                svg('text', {class: 'tick', x: x(tick), y: bottom + 16, 'text-anchor': 'middle'}, tick === 0 ? '0' : bytes(tick)));
  for (let r = 0; r < ranks; ++r) {
    const y = 10 + r * row;
    let sum = 0;
    if (r % every(row, 13) === 0)
      root.append(svg('text', {class: 'tick', x: left - 7, y: y + row / 2 + 3, 'text-anchor': 'end'}, 'rank ' + r));
    used.forEach(entry => {
      const value = entry.values[r];
      const bar = svg('rect', {class: 'mark', x: x(sum), y: y + 1, width: Math.max(0, x(sum + value) - x(sum)), height: row - 4,
                               style: 'fill:' + entry.colour});
      bar.addEventListener('pointermove', event => showTip(event, ['rank ' + r, entry.name + ': ' + bytes(value)]));
      bar.addEventListener('pointerleave', hideTip);
      root.append(bar);
      sum += value;
    });
  }
  root.append(svg('text', {class: 'label', x: width - 20, y: bottom + 34, 'text-anchor': 'end'}, 'peak since the run\u2019s start'));
  return root;
}

function memoryFigure(run, many) {
  const peaks = run.summary.peak_bytes;
  if (!peaks) return null;
  const used = purposes.map(([key, name], i) => ({name, colour: colour(i), values: peaks[key] || [], line: false}))
                   .filter(entry => entry.values.some(value => value > 0));
  if (used.length === 0) return null;
  const host = figure('Peak memory per rank' + (many ? ', ' + run.label : ''), 'Of what depends on the layout.');
  host.dataset.plot = 'peak_bytes';
  const key = legend(used), frame = el('div', {class: 'plot'});
  host.append(key || '', frame);
  responsive(frame, width => drawBars(peaks, used, width));
  exportTools(host, [run.label, 'peak memory'], () => ({
    columns: ['run', 'rank', ...used.map(entry => withUnit(entry.name, 'bytes'))],
    rows: used[0].values.map((_, r) => [run.label, r, ...used.map(entry => entry.values[r])])}));
  host.append(tableBehind('Table of peak memory', () => table([{title: 'Rank'}, ...used.map(entry => ({title: entry.name, format: bytes}))],
    used[0].values.map((_, r) => [String(r), ...used.map(entry => entry.values[r])]))));
  return host;
}

function communicationSection(runs) {
  const place = section('communication', 'Communication and memory');
  place.append(el('div', {class: 'figures'}, communicationFigures(runs), runs.map(run => memoryFigure(run, runs.length > 1))));
  return place;
}

// ---- Pipeline ----

function pipelineSection(runs) {
  if (!runs.some(run => run.summary.pipeline > 1 || run.trace.length > 0)) return null;
  const place = section('pipeline', 'Pipeline');
  const many = runs.length > 1;
  for (const run of runs) {
    for (const trace of run.trace) place.append(timelineFigure(trace, run, many));
    if (run.trace.length === 0)
      place.append(el('p', {class: 'note no-trace'}, (many ? run.label + ': no' : 'No') + ' timeline: the run wrote no trace. ',
                      el('code', {}, 'logging.trace_steps: [10]'),
                          ' in its configuration writes one of step 10, and the next report shows it.'));
  }
  place.append(el('div', {class: 'figures'},
    curveFigure(runs, {
      title: 'Bubble', note: 'Share of the ranks\u2019 time without computation, and that of the schedule itself: simulated with the ' +
                             'step\u2019s own times and free messages.',
      yLabel: 'share of rank time', yFormat: percent, zero: true,
      keys: [{key: 'pipeline.bubble', name: 'measured'}, {key: 'pipeline.bubble_bound', name: 'schedule'}]}),
    curveFigure(runs, {
      title: 'Pipeline efficiency', note: 'Simulated time of the step over the measured one.', yLabel: 'ratio', yFormat: percent,
          zero: true,
      keys: [{key: 'pipeline.efficiency', name: 'efficiency'}]})));
  return place;
}
