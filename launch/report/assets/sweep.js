// The page of a sweep: its runs, their curves, the fitted laws, and norms against depth.

const shown = name => name === '' ? 'all' : name;
function within(estimate) {
  if (!estimate.interval) return short(estimate.value);
  const [low, high] = estimate.interval;
  return short(estimate.value) + ' [' + short(low) + ', ' + (high === null ? '\u221e' : short(high)) + ']';
}

function sweepHeader(sweep) {
  const states = {};
  for (const run of sweep.runs) {
    const state = run.state.includes(', stopped early') ? 'stopped early' : run.state.startsWith('at step') ? 'under way' :
                  run.state.startsWith('diverged') ? 'diverged' : run.state;
    states[state] = (states[state] || 0) + 1;
  }
  return el('header', {}, el('h1', {}, sweep.name), el('p', {class: 'folder'}, sweep.folder),
            el('p', {}, sweep.runs.length + ' runs: ' + Object.entries(states).map(([state, n]) => n + ' ' + state).join(', ') + '.'));
}

function sweepRuns(sweep) {
  const place = section('runs', 'Runs');
  const value = (run, key) => run[key] === undefined ? null : run[key];
  const four = number => number.toFixed(4);
  place.append(table([{title: 'Run'}, {title: 'Size'}, {title: 'Variant'}, {title: 'Seed'}, {title: 'State'},
                      {title: 'Active parameters', format: count},
                      {title: 'Tokens', format: count}, {title: 'Compute', format: flop}, {title: 'Loss', format: four},
                      {title: 'Validation loss', format: four}],
                     sweep.runs.map(run => [run.name, run.size || null, run.variant || null, String(run.seed), run.state,
                                            ...['active_parameters', 'tokens', 'compute', 'loss',
                                                'validation_loss'].map(key => value(run, key))])));
  return place;
}

function sizeFigure(sweep, size, key, title, yLabel) {
  const runs = sweep.runs.filter(run => run.size === size && run.series[key]);
  if (runs.length === 0) return null;
  const host = figure(title + (size === '' ? '' : ', ' + size));
  host.dataset.plot = 'sweep-' + key;
  const make = () => ({
    ...curveAxis(runs), events: [], title, yLabel, yFormat: short, yLog: view.logLoss, smooth: view.smooth,
    series: runs.map(run => {
      const index = sweep.variants.indexOf(run.variant);
      return lineOf(run, run.series[key], {name: shown(run.variant), label: run.name, colour: colour(index), dash: dash(index),
                                           thin: runs.length > 4, marks: key === 'validation_loss'});
    })});
  view.redraws.push(linePlot(host, make));
  exportTools(host, [sweep.name, title, size], () => curveCsv(runs, [{key, name: key}], yLabel));
  host.append(tableBehind('Table of ' + uncapital(title), () => {
    const series = runs.map(run => ({...run.series[key], name: run.name, x: run.series[key].step, y: run.series[key].value}));
    return el('div', {}, thinningNote(series) ? el('p', {class: 'note'}, thinningNote(series)) : null, curvesTable('Step', series));
  }));
  return host;
}

function sweepCurves(sweep) {
  if (!sweep.runs.some(run => run.series.loss)) return null;
  const begun = sweep.runs.filter(run => run.series.loss);
  for (const run of begun) run.label = run.name;
  const place = section('curves', 'Training', 'A line per seed; colour and dashes tell the variant.', ...stretchNote(begun));
  place.append(curveControls(begun));
  place.append(el('div', {class: 'figures'}, sweep.sizes.map(size => [
    sizeFigure(sweep, size, 'loss', 'Training loss', 'nats per token'),
    sizeFigure(sweep, size, 'validation_loss', 'Validation loss', 'nats per token')])));
  return place;
}

// ---- Fitted laws ----

function fitPlot(fit, form) {
  const series = [], bands = [], unit = fit.unit_flop;
  fit.variants.forEach((variant, v) => {
    const law = variant[form];
    if (!law) return;
    const points = fit.points.filter(point => point.variant === variant.variant).sort((a, b) => a.compute - b.compute);
    series.push({name: shown(variant.variant), x: law.curve.map(p => p.compute / unit), y: law.curve.map(p => p.value), colour: colour(v),
                 dash: dash(v)},
                {name: shown(variant.variant) + ', runs', hideInLegend: true, x: points.map(p => p.compute / unit),
                 y: points.map(p => p.loss),
                 colour: colour(v), line: false});
    const banded = law.curve.filter(p => p.interval && isNumber(p.interval[0]) && isNumber(p.interval[1]));
    if (banded.length > 1)
      bands.push({x: banded.map(p => p.compute / unit), low: banded.map(p => p.interval[0]), high: banded.map(p => p.interval[1]),
                  colour: colour(v)});
  });
  return {title: 'Fitted laws', group: 'compute', series, bands, xLog: true, yLog: true, height: 380,
          xLabel: 'training compute, PFLOP/s-days',
          xName: 'compute', xFormat: v => short(v, 3), yLabel: 'loss, nats per token', yFormat: short};
}

// A row per point of the fitted curve, and per run.
function fitCsv(fit, form) {
  const unit = fit.unit_flop, low = p => p.interval ? p.interval[0] : null, high = p => p.interval ? p.interval[1] : null;
  const name = p => p.variant || 'all';
  return {columns: ['what', 'variant', 'size', 'seed', 'compute [PFLOP/s-days]', 'loss [nats per token]', 'low of 95 %', 'high of 95 %'],
          rows: [...fit.variants.flatMap(variant => variant[form] ? variant[form].curve.map(p =>
                   ['law', name(variant), null, null, p.compute / unit, p.value, low(p), high(p)]) : []),
                 ...fit.points.map(p => ['run', name(p), p.size, p.seed, p.compute / unit, p.loss, null, null])]};
}

function lawFigure(fit, form, title, note) {
  if (!fit.variants.some(variant => variant[form])) return null;
  const host = figure(title, note);
  host.classList.add('wide');
  host.dataset.plot = 'fit-' + form;
  linePlot(host, () => fitPlot(fit, form));
  exportTools(host, ['scaling law', form], () => fitCsv(fit, form));
  const digits = v => short(v, 5);
  const rows = fit.variants.flatMap(variant => variant[form] ? variant[form].curve.map(p =>
    [shown(variant.variant), p.compute / fit.unit_flop, p.value, p.interval ? p.interval[0] : null, p.interval ? p.interval[1] : null])
        : []);
  host.append(tableBehind('Table of the fitted curves', () => table(
                [{title: 'Variant'}, {title: 'PFLOP/s-days', format: digits}, {title: 'Loss', format: digits},
                 {title: 'Low', format: digits},
                 {title: 'High', format: digits}], rows)),
              tableBehind('Table of the runs', () => table(
                [{title: 'Variant'}, {title: 'Size'}, {title: 'Seed'}, {title: 'PFLOP/s-days', format: digits}, {title: 'Loss'}],
                fit.points.map(p => [shown(p.variant), p.size, String(p.seed), p.compute / fit.unit_flop, p.loss]))));
  return host;
}

function coefficients(fit) {
  const forms = variant => [['L = A C\u207b\u1d45', variant.power, variant.power_problem],
                            ['L = E + A C\u207b\u1d45', variant.irreducible, variant.irreducible_problem]];
  const rows = fit.variants.flatMap(variant => forms(variant).map(([form, law, problem]) => law
    ? [shown(variant.variant), form, within(law.a), within(law.alpha), law.e ? within(law.e) : null, short(law.rms, 3),
       variant.num_points + ' in ' + variant.num_cells]
    : [shown(variant.variant), form, problem || null, null, null, null, null]));
  return table([{title: 'Variant'}, {title: 'Law'}, {title: 'A'}, {title: '\u03b1'}, {title: 'E'}, {title: 'Residual of log L'},
                {title: 'Runs'}],
               rows, 'Coefficients, with 95 % intervals');
}

function gains(fit) {
  if (fit.gains.length === 0) return null;
  return table([{title: 'Variant'}, {title: 'Against'}, {title: 'Law'}, {title: 'At compute'}, {title: 'Gain'}, {title: ''}],
               fit.gains.map(gain => [shown(gain.variant), shown(gain.baseline), gain.form,
                                      short(gain.compute / fit.unit_flop, 3) + ' PFLOP/s-days',
                                      gain.infinite ? 'no compute is enough' : within(gain.gain), gain.note || null]),
               'Compute-equivalent gain: how many times the compute the baseline needs for the same loss');
}

function isoflopFigure(entry) {
  const host = figure('Loss against size at equal compute, ' + shown(entry.variant));
  host.dataset.plot = 'isoflop';
  const parabola = (curve, n) => {
    const x = Math.log(n / curve.centre);
    return curve.c[0] + curve.c[1] * x + curve.c[2] * x * x;
  };
  linePlot(host, () => ({
    title: 'IsoFLOP curves', group: 'isoflop', xLog: true, xLabel: 'active parameters', xName: 'parameters',
    xFormat: v => count(Number(v.toPrecision(3))), yLabel: 'loss, nats per token', yFormat: short,
    series: entry.curves.flatMap((curve, c) => {
      const [low, high] = extent([curve.parameters]), grid = Array.from({length: 41}, (_, i) => low * Math.pow(high / low, i / 40));
      return [{name: flop(curve.compute), x: grid, y: grid.map(n => parabola(curve, n)), colour: colour(c), dash: dash(c)},
              {name: flop(curve.compute) + ', runs', hideInLegend: true, x: curve.parameters, y: curve.losses, colour: colour(c),
               line: false}];
    })}));
  exportTools(host, ['isoflop', shown(entry.variant)], () => ({
    columns: ['variant', 'compute [FLOP]', 'active parameters', 'tokens', 'loss [nats per token]'],
    rows: entry.curves.flatMap(curve => curve.parameters.map((n, i) => [shown(entry.variant), curve.compute, n, curve.tokens[i],
        curve.losses[i]]))}));
  host.append(tableBehind('Table of the sizes', () => table(
    [{title: 'Compute', format: flop}, {title: 'Active parameters', format: count}, {title: 'Tokens', format: count}, {title: 'Loss'},
     {title: 'Best size'}],
    entry.curves.flatMap(curve => curve.parameters.map((n, i) =>
      [curve.compute, n, curve.tokens[i], curve.losses[i], curve.problem || within(curve.parameters_opt)])))));
  return host;
}

function fitSection(fit) {
  const place = section('fit', 'Scaling laws');
  for (const warning of fit.warnings) place.append(el('p', {class: 'note'}, warning));
  if (fit.problem) {
    place.append(el('p', {class: 'problem'}, 'No law was fitted: ' + fit.problem));
    return place;
  }
  if (fit.interval_problem) place.append(el('p', {class: 'note'}, 'No intervals: ' + fit.interval_problem));
  place.append(lawFigure(fit, 'power', 'L = A C\u207b\u1d45',
                         'C in PFLOP/s-days. Points: runs; lines: fitted laws; bands: 95 % intervals over seeds.'),
               lawFigure(fit, 'irreducible', 'L = E + A C\u207b\u1d45', 'With a loss that no compute removes.') || '', coefficients(fit),
               gains(fit) || '');
  if (fit.isoflop.length > 0) place.append(el('div', {class: 'figures'}, fit.isoflop.map(isoflopFigure)));
  return place;
}

// ---- Norms against depth ----

function normsSection(sweep) {
  if (sweep.norms.length === 0) return null;
  const place = section('norms', 'Norms against depth',
                        'hidden_rms, what the residual scheme hands to each sublayer, at the last logged step of ' +
                        'the finished runs: mean over seeds.');
  const figures = sweep.sizes.map(size => {
    const groups = sweep.norms.filter(group => group.size === size);
    if (groups.length === 0) return null;
    const host = figure(size === '' ? 'Hidden state' : 'Hidden state, ' + size);
    host.dataset.plot = 'norms';
    const series = groups.map(group => {
      const index = sweep.variants.indexOf(group.variant);
      return {name: shown(group.variant), x: group.hidden_rms.map((_, i) => i), y: group.hidden_rms, colour: colour(index),
              dash: dash(index),
              marks: group.hidden_rms.length <= 40};
    });
    const sites = groups[0].sites.map(placeName);
    linePlot(host, () => ({title: 'Norms against depth', group: 'depth of ' + size, series,
                           xLabel: 'sublayer, from the embedding to the output',
                           xName: 'sublayer', xFormat: v => Number.isInteger(v) ? sites[v] || String(v) : '', yLabel: 'root mean square',
                           yFormat: short, yLog: true}));
    exportTools(host, [sweep.name, 'norms', size], () => ({
      columns: ['size', 'variant', 'runs', 'layer', 'sublayer', 'hidden_rms [root mean square]'],
      rows: groups.flatMap(group => group.sites.map((site, i) => [size, group.variant, group.num_runs, site.layer, site.sublayer,
                                                                  group.hidden_rms[i]]))}));
    host.append(tableBehind('Table of norms', () => table(
      [{title: 'Sublayer'}, ...groups.map(group => ({title: shown(group.variant) + ' (' + group.num_runs + ' runs)'}))],
      sites.map((site, i) => [site, ...groups.map(group => group.hidden_rms[i])]))));
    return host;
  });
  place.append(el('div', {class: 'figures'}, figures));
  return place;
}

function sweepPage(page, sweep) {
  return [sweepHeader(sweep), sweepRuns(sweep), sweepCurves(sweep), fitSection(sweep.fit), normsSection(sweep)];
}
