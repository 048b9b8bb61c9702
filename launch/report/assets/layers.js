// What is logged per sublayer, as maps of depth against steps.

const placeName = place => place.sublayer === 'output' ? 'output' : place.layer + ' ' + place.sublayer;

const quantities = [
  {key: 'hidden_rms', title: 'Hidden state', note: 'What the residual scheme hands to each sublayer.',
   unit: 'root mean square', isLog: true},
  {key: 'output_rms', title: 'Sublayer output', note: 'What each sublayer adds.', unit: 'root mean square', isLog: true},
  {key: 'grad_rms', title: 'Gradient of the output', note: 'Of the loss, with respect to each sublayer\u2019s output.',
   unit: 'root mean square', isLog: true},
  {key: 'grad_norm', title: 'Gradient of the parameters', note: 'Of each sublayer, before clipping.', unit: 'L2 norm', isLog: true},
  {key: 'weight_norm', title: 'Parameters', note: 'Of each sublayer.', unit: 'L2 norm', isLog: true},
  {key: 'depth_entropy', title: 'Entropy of the depth weights',
   note: 'Of each read, mean over tokens: 0 where it looks at one source only.',
   unit: 'nats', isLog: false},
  {key: 'depth_largest', title: 'Largest depth weight', note: 'Of each token, mean over tokens: 1 where the read is saturated.',
   unit: 'weight', isLog: false},
  {key: 'query_norm', title: 'Depth query', note: 'Before the step.', unit: 'L2 norm', isLog: true},
  {key: 'query_update', title: 'Update of the depth query', note: 'What the step added to it.', unit: 'L2 norm', isLog: true},
  {key: 'max_logit', title: 'Largest attention logit', note: 'Over the heads of multi-head latent attention.', unit: 'logit', isLog: true},
  {key: 'max_violation', title: 'Imbalance of the experts', note: 'Load of the busiest expert over the mean, less one.',
   unit: 'share of the mean', isLog: false},
  {key: 'router_entropy', title: 'Router entropy', note: 'Of the normalised scores, mean over tokens.', unit: 'nats', isLog: false},
  {key: 'balance_loss', title: 'Balance loss per layer', note: 'Without its weight.', unit: 'loss', isLog: false},
  {key: 'dead_experts', title: 'Experts without a token', unit: 'experts', isLog: false},
];

// Of one run: the rows that have the quantity in some step.
function stepMap(run, quantity) {
  const layers = run.layers, all = layers && layers.quantities[quantity.key];
  if (!all) return null;
  const kept = all.map((_, r) => r).filter(r => all[r].some(isNumber));
  return {isLog: quantity.isLog && kept.some(r => all[r].some(value => value > 0)), values: kept.map(r => all[r]),
          low: layers.smallest ? kept.map(r => layers.smallest[quantity.key][r]) : null, places: kept.map(r => layers.rows[r]),
          rows: kept.map(r => placeName(layers.rows[r])), starts: layers.steps, ends: layers.last_steps || layers.steps,
          perColumn: layers.per_column};
}

const stepsName = (start, end) => start === end ? 'step ' + whole(start) : 'steps ' + whole(start) + ' to ' + whole(end);

// What drawMap needs: the columns that the zoom shows. Between two logged steps it is the one before.
function shownMap(map, quantity) {
  const full = [map.starts[0], map.ends[map.ends.length - 1]], [low, high] = shownRange('step', full);
  let kept = map.starts.map((_, c) => c).filter(c => map.ends[c] >= low && map.starts[c] <= high);
  if (kept.length === 0) kept = [Math.max(0, map.starts.filter(start => start <= low).length - 1)];
  const cut = list => kept.map(c => list[c]);
  return {title: quantity.title, name: quantity.key, unit: quantity.unit, ...map, full, group: 'step', values: map.values.map(cut),
          starts: cut(map.starts), ends: cut(map.ends), columns: cut(map.starts).map(whole), rowLabel: 'sublayer',
              columnLabel: 'optimizer steps',
          columnName: 'step', columnTitles: kept.map(c => stepsName(map.starts[c], map.ends[c])),
          more: map.more ? (r, c) => map.more(r, kept[c])
            : map.low && map.perColumn > 1 ? (r, c) => ['smallest of these steps: ' + short(map.low[r][kept[c]], 5)] : null};
}

// A row per sublayer and column.
function mapCsv(runs, maps, quantity) {
  const isThinned = maps.some(map => map && map.perColumn > 1);
  const steps = isThinned ? ['first step', 'last step'] : ['step'];
  const values = isThinned ? ['largest ' + quantity.key, 'smallest ' + quantity.key] : [quantity.key];
  const rows = maps.flatMap((map, i) => !map ? [] : map.places.flatMap((place, r) => map.starts.map((start, c) => {
    const value = map.values[r][c];
    return isThinned ? [runs[i].label, place.layer, place.sublayer, start, map.ends[c], value, map.low ? map.low[r][c] : value]
                     : [runs[i].label, place.layer, place.sublayer, start, value];
  })));
  return {columns: ['run', 'layer', 'sublayer', ...steps, ...values.map(name => withUnit(name, quantity.unit))], rows};
}

function mapFigure(runs, quantity) {
  const maps = runs.map(run => stepMap(run, quantity));
  if (!maps.some(Boolean)) return null;
  const many = runs.length > 1, host = figure(quantity.title, quantity.note);
  host.dataset.plot = 'map-' + quantity.key;
  const usable = maps.filter(Boolean), isLog = usable.every(map => map.isLog);
  const domain = extent(usable.flatMap(map => map.values.map(row => isLog ? row.filter(value => value > 0) : row)));
  const panels = el('div', {class: many ? 'panels' : null});
  host.append(panels);
  maps.forEach((map, i) => {
    const panel = el('div', {class: 'panel'}, many ? el('h4', {}, runs[i].label) : null);
    panels.append(panel);
    if (map) drawPanel(panel, () => shownMap({...map, isLog, domain}, quantity));
    else panel.append(el('p', {class: 'note'}, 'Not logged by this run.'));
  });
  for (let i = 1; i < runs.length; ++i) if (maps[0] && maps[i]) panels.append(differencePanel(runs, i, maps, {...quantity, isLog}));
  if (many) host.classList.add('wide');
  exportTools(host, [...runs.map(run => run.label), quantity.title], () => mapCsv(runs, maps, quantity));
  host.append(tableBehind('Table of ' + uncapital(quantity.title), () => el('div', {}, maps.map((map, i) =>
    map ? el('div', {}, many ? el('h4', {}, runs[i].label) : null, mapTable({...map, columns: map.starts.map(whole), columnName: 'step'}))
        : null))));
  return host;
}

// Drawn when it has its place on the page, whose width it needs.
const waiting = [];
function drawPanel(panel, make) {
  waiting.push(() => heatMap(panel, make));
}
function drawWaiting() {
  for (const draw of waiting.splice(0)) draw();
}

// What the maps leave out, in words; null where each logged step has a column.
function columnsNote(runs) {
  const thinned = runs.filter(run => run.layers && run.layers.per_column > 1);
  if (thinned.length === 0) return null;
  return thinned.map(run => (runs.length > 1 ? run.label + ': each' : 'Each') + ' column stands for ' + run.layers.per_column + ' of the ' +
                            whole(run.layers.logged) + ' logged steps and has the largest of their values. ').join('');
}

function layersSection(runs) {
  if (!runs.some(run => run.layers))
    return fill(section('layers', 'Norms by layer and step', 'No sublayer was logged.'), {},
                [el('p', {class: 'note'}, el('code', {}, 'logging.layer_stats_interval'), ' above 0 writes layers.jsonl.')]);
  const notes = ['Depth grows downwards: each layer\u2019s mixer, then its MLP. The bar beside a map says what its colours mean' +
                 (runs.length > 1 ? '; the runs share one.' : '.'),
                 runs.length > 1 ? 'The map of their difference has its own: red is more, blue is less, light grey is equal. ' +
                                   'Where maps are logarithmic it is log\u2082 of the ratio: 1 is twice as large, \u22121 is half.' : null,
                 columnsNote(runs)];
  return fill(section('layers', 'Norms by layer and step', ...notes.filter(Boolean)), {},
              [el('div', {class: 'figures'}, quantities.map(quantity => mapFigure(runs, quantity)))]);
}
