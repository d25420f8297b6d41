"""Slow reference of the rebalancing: one unpadded image at a time, plain loops, float64 NumPy, no shared code."""

import itertools

import numpy as np

IGNORE = 255


def min_max(image):
    low, high = image.min(), image.max()
    constant = high - low <= 1e-5 * max(abs(low), abs(high))
    return np.zeros_like(image) if constant else (image - low) / (high - low)


def resize(image, size):
    """Bilinear resizing with half-pixel centres and repeated borders."""
    (h, w), (height, width) = image.shape, size
    if (h, w) == (height, width):
        return image.copy()
    out = np.zeros(size)
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
            u = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
            v0, u0 = int(v), int(u)
            v1, u1 = min(v0 + 1, h - 1), min(u0 + 1, w - 1)
            a, b = v - v0, u - u0
            out[y, x] = (1 - a) * ((1 - b) * image[v0, u0] + b * image[v0, u1]) + a * (
                (1 - b) * image[v1, u0] + b * image[v1, u1]
            )
    return out


def scale(similarity, epsilon, shares=None, tol=1e-2, max_iter=100, stopping="absolute"):
    """Scaling loop of the published code on `(M, N)`: returns the plan and the number of iterations."""
    pixels, classes = similarity.shape
    kernel = np.exp((similarity - 1) / epsilon)
    u = np.full(pixels, 1 / pixels)
    v = np.full(classes, 1 / classes) if shares is None else shares / shares.sum()
    r, c = np.ones(pixels), np.ones(classes)
    for iterations in itertools.count(1):
        previous = r
        r = u / (kernel @ c)
        c = v / (kernel.T @ r)
        error = np.abs(r - previous).mean() if stopping == "absolute" else np.abs(r * (kernel @ c) - u).sum()
        if error < tol or iterations == max_iter:
            return r[:, None] * kernel * c, iterations


def solve(maps, options, shares=None):
    """Plan between the pixels and a list of maps; a converged one is converged further than ours has to be."""
    tol, max_iter = (1e-2, 100) if options.stopping == "absolute" else (1e-9, 10_000)
    similarity = np.stack([m.ravel() for m in maps], 1)
    return scale(similarity, options.epsilon, shares, tol, max_iter, options.stopping)[0]


def weights(maps, options):
    """Transport weights of a list of maps."""
    plan = solve(maps, options)
    constant = plan.min(0) > (1 - 1e-4) * plan.max(0)
    columns = [np.ones(len(plan)) if constant[k] else min_max(plan[:, k]) for k in range(len(maps))]
    return [column.reshape(maps[0].shape) for column in columns]


def argmax_label(maps, labels):
    """Best label per pixel, and the lead of the best over the second."""
    stack = np.stack(maps)
    ordered = np.sort(stack, 0)
    margin = ordered[-1] - ordered[-2] if len(maps) > 1 else np.ones_like(stack[0])
    return np.array(labels)[stack.argmax(0)], margin


def otsu_exponent(activation, bins=256):
    """Exponent of the background that meets the activation where the two parts of its histogram differ most."""
    values = (np.clip(np.floor(activation.ravel() * bins), 0, bins - 1) + 0.5) / bins
    between = []
    for edge in np.arange(1, bins) / bins:
        low, high = values[values < edge], values[values > edge]
        both = len(low) and len(high)
        between.append(len(low) * len(high) * (low.mean() - high.mean()) ** 2 if both else 0.0)
    threshold = np.mean(np.arange(1, bins)[np.array(between) >= np.max(between) * (1 - 1e-12)]) / bins
    return np.log(threshold) / np.log(1 - threshold)


def seed_mask(cam, tags, size, options):
    if not tags:
        return np.full(size, IGNORE), np.ones(size)
    maps = [cam[c] for c in tags]
    if options.seed_transport:
        maps = [m * w for m, w in zip(maps, weights(maps, options), strict=True)]
    gamma = otsu_exponent(np.max(maps, 0)) if options.gamma == "auto" else options.gamma
    maps = [resize(m, size) for m in maps]
    background = (1 - np.max(maps, 0)) ** (gamma if options.seed_background else 1)
    return argmax_label([background, *maps], [IGNORE, *tags])


def merge(mask, seed, keys, tags, options):
    init = np.where(np.isin(mask, keys), mask, IGNORE)
    clean, recovered = init.copy(), set()
    seeded = [c for c in tags if (seed == c).any()]
    if options.seed == "all":
        recovered = set(seeded)
    while options.seed == "vanished":
        current = clean.copy()
        for c in recovered:
            current[seed == c] = c
        least = {c: max(options.min_pixels, options.min_share * (seed == c).sum()) for c in seeded}
        lost = {c for c in seeded if (current == c).sum() < least[c]}
        if lost <= recovered:
            break
        recovered |= lost
    for c in recovered:
        init[seed == c] = c
    return init, recovered


def cell_windows(length, cells):
    return [(i * length // cells, -(-(i + 1) * length // cells)) for i in range(cells)]


def centroids(features, mask, keys, options):
    """Average feature per class over its majority cells, or over area where it has none or that is asked."""
    depth, h, w = features.shape
    sums = {c: np.zeros(depth) for c in keys}
    areas = {c: np.zeros(depth) for c in keys}
    for y, (y0, y1) in enumerate(cell_windows(mask.shape[0], h)):
        for x, (x0, x1) in enumerate(cell_windows(mask.shape[1], w)):
            window = mask[y0:y1, x0:x1].ravel().tolist()
            counts = [window.count(c) for c in keys]
            counts.append(len(window) - sum(counts))
            winner = int(np.argmax(counts))
            for c, count in zip(keys, counts[:-1], strict=True):
                areas[c] += features[:, y, x] * count / len(window)
            if winner < len(keys):
                sums[keys[winner]] += features[:, y, x]
    chosen = {c: s if s.any() and options.pooling == "majority" else areas[c] for c, s in sums.items()}
    return {c: v / np.linalg.norm(v) for c, v in chosen.items() if v.any()}


def cosine_maps(features, vectors):
    _, h, w = features.shape
    maps = {c: np.zeros((h, w)) for c in vectors}
    for c, vector in vectors.items():
        for y in range(h):
            for x in range(w):
                cell = features[:, y, x]
                maps[c][y, x] = cell @ vector / max(np.linalg.norm(cell), 1e-38)
    return maps


def find_groups(vectors, tau, grouping):
    keys = sorted(vectors)
    alike = {(a, b) for a in keys for b in keys if a == b or vectors[a] @ vectors[b] > tau}
    if grouping == "row_upper":
        rows = [[b for b in keys if b >= a and (a, b) in alike] for a in keys]
        return [row for row in rows if len(row) > 1]
    groups = []
    for a in keys:
        joined = [g for g in groups if any((a, b) in alike for b in g)]
        groups = [g for g in groups if g not in joined] + [[a, *(b for g in joined for b in g)]]
    return [sorted(g) for g in groups if len(g) > 1]


def chosen_levels(levels, options):
    return {"all": levels, "first": levels[:1], "last": levels[-1:]}[options.wss_levels]


def class_maps(uss, levels, vectors, init, keys, options):
    cosines = cosine_maps(uss, vectors)
    if options.features == "both":
        more = [cosine_maps(level, centroids(level, init, keys, options)) for level in chosen_levels(levels, options)]
        grid = uss.shape[1:]
        cosines = {c: (m + sum(resize(one[c], grid) for one in more)) / (1 + len(more)) for c, m in cosines.items()}
    if options.heatmap == "softmax":
        total = sum(np.exp(m / options.temperature) for m in cosines.values())
        return {c: np.exp(m / options.temperature) / total for c, m in cosines.items()}
    if options.heatmap == "relu":
        return {c: np.maximum(m, 0) for c, m in cosines.items()}
    return {c: min_max(m) for c, m in cosines.items()}


def supervised(levels, init, keys, active, grid, options):
    per_level = []
    for level in chosen_levels(levels, options):
        found = cosine_maps(level, centroids(level, init, keys, options))
        per_level.append({c: resize(min_max(m), grid) for c, m in found.items()})
    return {c: min_max(sum(level[c] for level in per_level) / len(per_level)) for c in active}


def transport_all(heat, init, options):
    """Last transport over all classes of an image."""
    active = sorted(heat)
    if options.final_marginal == "uniform":
        factors = weights([heat[c] for c in active], options)
        return {c: heat[c] * factor for c, factor in zip(active, factors, strict=True)}
    grid = heat[active[0]].shape
    shares = np.array([resize_area(init == c, grid) for c in active])
    shares = shares / shares.sum()
    if options.final_marginal == "mix":
        shares = (shares + 1 / len(active)) / 2
    plan = solve([heat[c] for c in active], options, shares)
    return {c: heat[c] * (plan[:, k] / plan.sum(1)).reshape(grid) for k, c in enumerate(active)}


def heatmaps(uss, levels, init, keys, options):
    vectors = centroids(uss, init, keys, options)
    maps = class_maps(uss, levels, vectors, init, keys, options)
    heat, active = dict(maps), sorted(vectors)
    last = options.final_transport and bool(active)
    groups = find_groups(vectors, options.tau, options.grouping)
    if last and options.final_order == "before":
        heat = transport_all(heat, init, options)
    if options.wss and groups:
        mean = supervised(levels, init, keys, active, uss.shape[1:], options)
        for group in groups:
            rivals = active if options.group_cost == "all" else group
            for c, weight in zip(rivals, weights([mean[c] for c in rivals], options), strict=True):
                heat[c] = heat[c] * weight if c in group else heat[c]
    if last and options.final_order == "after":
        heat = transport_all(heat, init, options)
    if options.heatmap == "min_max" and (not options.final_transport or options.final_marginal == "uniform"):
        heat = {c: min_max(m) for c, m in heat.items()}
    return maps, heat, groups


def resize_area(member, grid):
    """Sum over the cells of the share of a class."""
    return sum(
        member[y0:y1, x0:x1].mean()
        for y0, y1 in cell_windows(member.shape[0], grid[0])
        for x0, x1 in cell_windows(member.shape[1], grid[1])
    )


def rebalance_reference(mask, cam, uss, levels, keys, offset, options, tied_seed, tie=1e-4):
    """Run every stage on one unpadded image; `cam` maps class value to `(h, w)`.

    Where the lead of the best seed is at most `tie`, later stages start from `tied_seed`.
    """
    tags = [c for c in keys if c >= offset]
    seed, margin = np.full(mask.shape, IGNORE), np.ones(mask.shape)
    if options.seed != "none":
        seed, margin = seed_mask(cam, tags, mask.shape, options)
    used = np.where(margin > tie, seed, tied_seed)
    init, recovered = merge(mask, used, keys, tags, options)
    result = {"seed": seed, "seed_margin": margin, "init": init, "recovered": recovered, "mask": init}
    result["margin"] = np.ones(mask.shape)
    if not options.uss:
        return result
    maps, heat, groups = heatmaps(uss, levels, init, keys, options)
    result |= {"uss": maps, "heat": heat, "groups": groups}
    final = np.full(mask.shape, IGNORE)
    if heat:
        final, result["margin"] = argmax_label([resize(heat[c], mask.shape) for c in sorted(heat)], sorted(heat))
    without = [c for c in keys if c not in heat]
    final = np.where(np.isin(init, without), init, final)
    result["mask"] = np.where(init == IGNORE, IGNORE, final) if options.preserve_ignore else final
    return result
