// A depth map as points in space, drawn on a 2D canvas: no library, one depth buffer.

const NEAR = 0.05 // of the pivot's distance: nearer points are behind the glass
const LARGEST = 40 // pixels of a point at most

/**
 * Where the pixels of a depth map are, for a level pinhole camera at the origin that looks along z; y points down.
 *
 * @param {{width: number, height: number, values: Float32Array}} map z-depth in metres; what is not positive is a hole
 * @param {{across: number, down: number}} camera its field of view in degrees
 * @returns points: for each pixel that is no hole the tangents of its ray, its depth and its index; pivot: the median
 *     depth, about which the view turns
 */
export function unproject(map, camera) {
  const across = Math.tan((camera.across / 360) * Math.PI)
  const down = Math.tan((camera.down / 360) * Math.PI)
  const points = []
  for (let row = 0; row < map.height; row++) {
    for (let column = 0; column < map.width; column++) {
      const index = row * map.width + column
      const depth = map.values[index]
      if (depth > 0) {
        const x = (((column + 0.5) / map.width) * 2 - 1) * across
        const y = (((row + 0.5) / map.height) * 2 - 1) * down
        points.push({ x, y, depth, index })
      }
    }
  }
  const depths = points.map((point) => point.depth).sort((a, b) => a - b)
  const pivot = depths.length ? depths[depths.length >> 1] : 1
  return { points, pivot, across, down, cell: (2 * across) / map.width, cellDown: (2 * down) / map.height }
}

/**
 * Draw a cloud.
 *
 * At fold 0 all points lie on a plane before the camera: the flat map. At fold 1 each is where it is in the room.
 *
 * @param {HTMLCanvasElement} canvas
 * @param cloud what `unproject` returned
 * @param {(index: number) => number[]} color red, green and blue of a pixel of the map
 * @param {{fold: number, turn: number, tilt: number}} view fold in [0, 1]; degrees
 */
export function drawCloud(canvas, cloud, color, view) {
  const { width, height } = canvas
  const context = canvas.getContext('2d')
  const image = context.createImageData(width, height)
  const buffer = new Float32Array(width * height).fill(Infinity)
  const project = projection(cloud, view, width, height)
  for (const point of cloud.points) {
    const z = cloud.pivot + view.fold * (point.depth - cloud.pivot)
    const seen = project(point.x * z, point.y * z, z)
    if (seen === null) continue
    const [red, green, blue] = color(point.index)
    // As wide as the pixel's patch of surface, so that a wall that faces the camera has no gaps.
    const across = Math.min(LARGEST, Math.ceil(cloud.cell * z * seen.scale) + 1)
    const down = Math.min(LARGEST, Math.ceil(cloud.cellDown * z * seen.scale) + 1)
    const left = Math.round(seen.x - across / 2)
    const top = Math.round(seen.y - down / 2)
    for (let y = Math.max(0, top); y < Math.min(height, top + down); y++) {
      for (let x = Math.max(0, left); x < Math.min(width, left + across); x++) {
        const place = y * width + x
        if (seen.z >= buffer[place]) continue
        buffer[place] = seen.z
        image.data.set([red, green, blue, 255], 4 * place)
      }
    }
  }
  context.putImageData(image, 0, 0)
  if (view.fold > 0) drawAxis(context, cloud, project, view.fold)
}

/** The view: it turns about the pivot, and steps back as the cloud unfolds. Returns canvas coordinates, or null. */
function projection(cloud, view, width, height) {
  const turn = (view.fold * view.turn * Math.PI) / 180
  const tilt = (view.fold * view.tilt * Math.PI) / 180
  const distance = cloud.pivot * (1 + 0.6 * view.fold)
  const focal = 0.96 * Math.min(width / 2 / cloud.across, height / 2 / cloud.down)
  const [cosTurn, sinTurn, cosTilt, sinTilt] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)]
  return (x, y, z) => {
    z -= cloud.pivot
    const turned = cosTurn * x + sinTurn * z
    const along = cosTurn * z - sinTurn * x
    const lifted = cosTilt * y + sinTilt * along
    const away = cosTilt * along - sinTilt * y + distance
    if (away < NEAR * cloud.pivot) return null
    const scale = focal / away
    return { x: width / 2 + turned * scale, y: height / 2 + lifted * scale, z: away, scale }
  }
}

/** The camera with the rim of its view, and metres along its axis. */
function drawAxis(context, cloud, project, fold) {
  const farthest = Math.floor(Math.max(...[cloud.pivot, ...cloud.points.map((point) => point.depth)]))
  const pixel = context.canvas.width / Math.max(1, context.canvas.clientWidth)
  context.save()
  context.globalAlpha = 0.9 * fold
  context.strokeStyle = context.fillStyle = '#fff'
  context.lineWidth = pixel
  context.font = `${11 * pixel}px system-ui, sans-serif`
  const line = (...ends) => {
    const seen = ends.map((end) => project(...end))
    if (seen.includes(null)) return
    context.beginPath()
    seen.forEach(({ x, y }) => context.lineTo(x, y))
    context.stroke()
  }
  const rim = 0.35
  const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([x, y]) => [x * rim * cloud.across, y * rim * cloud.down, rim])
  corners.forEach((corner, number) => {
    line([0, 0, 0], corner)
    line(corner, corners[(number + 1) % 4])
  })
  line([0, 0, 0], [0, 0, farthest])
  for (let metre = 1; metre <= farthest; metre++) {
    const seen = project(0, 0, metre)
    if (seen === null) continue
    context.beginPath()
    context.arc(seen.x, seen.y, 2 * pixel, 0, 7)
    context.fill()
    if (farthest <= 8 || metre % Math.ceil(farthest / 8) === 0) context.fillText(`${metre} m`, seen.x + 5 * pixel, seen.y - 4 * pixel)
  }
  context.restore()
}
